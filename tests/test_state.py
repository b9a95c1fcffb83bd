"""The saved state: what was written is read back, and anything else is rejected."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpool.transfer.chunks import Chunk, plan_chunks
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.target.file.statefile import StateFile
from dlpool.transfer.target.state import PublishRecord, SavedChunk, SavedState, StateUnusable

GOLDEN = Path(__file__).parent / "golden"

STATE = SavedState(
    url="https://example.org/files/data.bin",
    url_sha256="a09b003f5aab43836c520031dc7d4579f62bc85ac9f95359790f1e0a828d9781",
    size=1000,
    etag='"5f3a-1"',
    last_modified="Mon, 06 May 2024 07:08:09 GMT",
    created_at="2024-05-07T10:00:00Z",
    updated_at="2024-05-07T10:00:04Z",
    attempts=2,
    last_error="timeout: nothing came for 30 s",
    chunks=(SavedChunk(0, 400, 400, True), SavedChunk(400, 700, 512, False), SavedChunk(700, 1000, 700, False)),
)
PUBLISHING = replace(
    STATE,
    etag=None,
    last_error=None,
    chunks=(SavedChunk(0, 1000, 1000, True),),
    publishing=PublishRecord(inode=1234567, size=1000),
)
VALIDATORS = replace(
    STATE,
    etag='W/"5f3a-1"',
    date="Mon, 06 May 2024 09:00:00 GMT",
    content_type="application/zip",
    host="cdn.example.org:8443",
    digest="md5:d41d8cd98f00b204e9800998ecf8427e",
    checksum="sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
)
GOLDENS = [("state-v1-validators.json", VALIDATORS), ("state-v1.json", STATE), ("state-v1-publishing.json", PUBLISHING)]


@st.composite
def states(draw: st.DrawFn) -> SavedState:
    edges = [0, *sorted(draw(st.sets(st.integers(1, 2**53), max_size=6)))]
    chunks = []
    for start, end in pairwise(edges):
        position = draw(st.sampled_from([start, end]) | st.integers(start, end))
        chunks.append(SavedChunk(start, end, position, position == end))
    text = st.text(max_size=10)
    optional = st.none() | text
    return SavedState(
        url=draw(text),
        url_sha256=draw(text),
        size=edges[-1],
        etag=draw(optional),
        last_modified=draw(optional),
        created_at=draw(text),
        updated_at=draw(text),
        attempts=draw(st.integers(0, 1000)),
        last_error=draw(optional),
        chunks=tuple(chunks),
        publishing=draw(st.none() | st.builds(PublishRecord, st.integers(0, 2**63), st.integers(0, 2**53))),
    )


def mutate(state: SavedState, **fields: Any) -> str:
    """The JSON of a state with some fields changed."""
    return json.dumps(json.loads(state.as_json()) | fields)


def check_invariants(state: SavedState) -> None:
    edges = [0, *(chunk.end for chunk in state.chunks)]
    assert [chunk.start for chunk in state.chunks] == edges[:-1]
    assert edges[-1] == state.size
    for chunk in state.chunks:
        assert all(type(value) is int for value in (chunk.start, chunk.end, chunk.position))
        assert chunk.start <= chunk.position <= chunk.end
        assert chunk.start < chunk.end
        assert chunk.done is (chunk.position == chunk.end)
    assert type(state.size) is int
    assert type(state.attempts) is int
    assert state.attempts >= 0
    assert all(type(text) is str for text in (state.url, state.url_sha256, state.created_at, state.updated_at))
    assert all(text is None or type(text) is str for text in (state.etag, state.last_modified, state.last_error))
    if state.publishing is not None:
        assert type(state.publishing.inode) is type(state.publishing.size) is int
    assert SavedState.from_json(state.as_json()) == state


# --- versions ---


@pytest.mark.parametrize(("name", "expected"), GOLDENS)
def test_a_state_of_version_1_still_loads(name: str, expected: SavedState) -> None:
    assert StateFile(GOLDEN / name, sync=False).load() == expected


@pytest.mark.parametrize(("name", "state"), GOLDENS)
def test_a_state_is_still_written_as_version_1(name: str, state: SavedState) -> None:
    assert state.as_json() == (GOLDEN / name).read_text().strip()


@pytest.mark.parametrize("version", [0, 2, -1, None, "1", True, [1], {"1": 1}, 1e400])
def test_a_state_of_another_version_is_not_used(version: object) -> None:
    with pytest.raises(StateUnusable, match="its version is"):
        SavedState.from_json(mutate(STATE, version=version))


# --- reading back ---


@given(states())
@settings(deadline=None)
def test_any_state_is_read_back_as_it_was(state: SavedState) -> None:
    assert SavedState.from_json(state.as_json()) == state
    check_invariants(state)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"size": 999},
        {"size": 1000.0},
        {"size": "1000"},
        {"size": True},
        {"size": None},
        {"attempts": -1},
        {"attempts": "2"},
        {"url": None},
        {"url": 5},
        {"url_sha256": ["a"]},
        {"etag": 5},
        {"last_modified": {}},
        {"created_at": None},
        {"updated_at": 0},
        {"last_error": False},
        {"chunks": None},
        {"chunks": {}},
        {"chunks": []},
        {"chunks": [None]},
        {"chunks": [[0, 1000, 0, False]]},
        {"publishing": []},
        {"publishing": True},
        {"publishing": {}},
        {"publishing": {"inode": -1, "size": 1}},
        {"publishing": {"inode": 1, "size": "1"}},
    ],
)
def test_a_field_of_another_type_or_range_is_not_believed(changes: dict[str, object]) -> None:
    with pytest.raises(StateUnusable):
        SavedState.from_json(mutate(STATE, **changes))


@pytest.mark.parametrize("name", [name for name in json.loads(STATE.as_json()) if name not in {"publishing"}])
def test_a_missing_field_is_not_made_up(name: str) -> None:
    fields = json.loads(STATE.as_json())
    del fields[name]
    if name in {"etag", "last_modified", "last_error"}:
        assert getattr(SavedState.from_json(json.dumps(fields)), name) is None
    else:
        with pytest.raises(StateUnusable):
            SavedState.from_json(json.dumps(fields))


def test_an_unknown_field_is_ignored() -> None:
    assert SavedState.from_json(mutate(STATE, colour="blue")) == STATE


@pytest.mark.parametrize("size", [2**63, 2**64])
def test_a_size_that_no_file_can_have_is_not_believed(size: int) -> None:
    chunks = [{"start": 0, "end": size, "position": 0, "done": False}]
    with pytest.raises(StateUnusable):
        SavedState.from_json(mutate(STATE, size=size, chunks=chunks))


@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 400, 0, False), (500, 1000, 500, False)],
        [(0, 500, 0, False), (400, 1000, 400, False)],
        [(1, 1000, 1, False)],
        [(0, 999, 0, False)],
        [(0, 1001, 0, False)],
        [(500, 1000, 500, False), (0, 500, 0, False)],
        [(0, 500, 501, False), (500, 1000, 500, False)],
        [(0, 500, 0, False), (500, 1000, 499, False)],
        [(0, 0, 0, True), (0, 1000, 0, False)],
        [(0, 1000, 1000, False)],
        [(0, 1000, 999, True)],
        [(0, 1000, 0, True)],
        [(0, 1000, 0, 0)],
        [(0, 1000, 0, None)],
        [(0, 1000, 0.0, False)],
        [(False, 1000, 0, False)],
    ],
)
def test_chunks_that_do_not_tile_the_file_are_not_believed(chunks: list[tuple[Any, Any, Any, Any]]) -> None:
    items = [dict(zip(("start", "end", "position", "done"), chunk, strict=True)) for chunk in chunks]
    with pytest.raises(StateUnusable):
        SavedState.from_json(mutate(STATE, chunks=items))


@pytest.mark.parametrize(
    "text",
    ["", " ", "null", "[]", "1", '"x"', "{", "{}", b"\xff\xfe", b"\0" * 512, "[" * 100_000, '{"version":' * 100_000],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_state_is_not_used(text: str | bytes) -> None:
    with pytest.raises(StateUnusable):
        SavedState.from_json(text)


@pytest.mark.parametrize("depth", [400, 600, 800, 900, 950, 980, 5000])
@pytest.mark.parametrize("name", ["version", "url", "chunks", "publishing"])
def test_deeply_nested_fields_do_no_harm(name: str, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    with pytest.raises(StateUnusable):
        SavedState.from_json(f'{STATE.as_json()[:-1]},"deep":{nested},"{name}":{nested}}}')


# --- mutations ---

SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-2, 1002)
    | st.sampled_from([2**63, 2**70, -1, 0.5, 1e300])
    | st.text(max_size=5)
    | st.just([])
    | st.just({})
)


def _places(node: object) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = [(node, key) for key in node]
    elif isinstance(node, list):
        items = [(node, index) for index in range(len(node))]
    return items + [place for container, key in items for place in _places(container[key])]


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_changed_state_is_refused_or_sound(data: st.DataObject) -> None:
    fields = json.loads(data.draw(st.sampled_from([STATE, PUBLISHING]) | states()).as_json())
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(_places(fields)))
        action = data.draw(st.sampled_from(["replace", "remove", "double"]))
        if action == "replace":
            container[key] = data.draw(SCALARS)
        elif action == "remove":
            del container[key]
        elif isinstance(container, list):
            container.insert(key, container[key])
    check_or_refuse(json.dumps(fields))


@given(st.integers(0, 600), st.integers(0, 20), st.binary(max_size=6))
@settings(max_examples=400, deadline=None)
def test_a_damaged_file_is_refused_or_sound(at: int, lost: int, new: bytes) -> None:
    text = STATE.as_json().encode()
    check_or_refuse(text[:at] + new + text[at + lost :])


@pytest.mark.parametrize("length", range(len(STATE.as_json())))
def test_a_state_cut_short_is_refused(length: int) -> None:
    with pytest.raises(StateUnusable):
        SavedState.from_json(STATE.as_json()[:length])


def check_or_refuse(text: str | bytes) -> None:
    try:
        state = SavedState.from_json(text)
    except StateUnusable:
        return
    check_invariants(state)


# --- what it says ---


def test_what_is_missing_is_what_lies_above_each_position() -> None:
    assert STATE.missing_spans == [ByteRange(512, 700), ByteRange(700, 1000)]
    assert PUBLISHING.missing_spans == []


def test_the_state_knows_the_version_of_the_remote() -> None:
    expected = RemoteResource(1000, '"5f3a-1"', "Mon, 06 May 2024 07:08:09 GMT")
    assert STATE.resource == expected


@given(states())
@settings(deadline=None)
def test_a_plan_from_a_state_holds_what_the_state_says(state: SavedState) -> None:
    chunk_map = plan_chunks(state.missing_spans, state.size, 4, 1)
    assert chunk_map.written() == sum(chunk.position - chunk.start for chunk in state.chunks)
    again = state.with_chunks(chunk_map.chunks, "now", None)
    check_invariants(again)
    assert sum(end - start for start, end in again.missing_spans) == sum(
        end - start for start, end in state.missing_spans
    )


def test_positions_are_saved_and_claims_are_not() -> None:
    chunks = [Chunk(0, 400, 400, 400), Chunk(400, 1000, 500, 900, owner="a")]
    state = STATE.with_chunks(chunks, "2024-05-07T11:00:00Z", "timeout: again")
    assert state.chunks == (SavedChunk(0, 400, 400, True), SavedChunk(400, 1000, 500, False))
    assert (state.updated_at, state.last_error, state.created_at) == (
        "2024-05-07T11:00:00Z",
        "timeout: again",
        STATE.created_at,
    )
