"""The state folder: one supervisor, one name, and every supervisor id is on disk before it is used."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from dlpool.errors import AlreadyRunning, LocalFault
from dlpool.service.node.node import MAX_NODE_ID, MAX_SIDS, Node, hold_worker_lock, make_node_id, parse_sids
from tests.holding import Holding, begin, is_running

Open = Callable[..., Node]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def open_node(state_dir: Path) -> Iterator[Open]:
    """Open the node as a supervisor would; a new call is a new start."""
    with ExitStack() as stack:

        def opened(node_id: str | None = None) -> Node:
            stack.close()
            node = Node.open(state_dir, node_id)
            stack.callback(node.close)
            return node

        yield opened


@pytest.fixture
def hold(state_dir: Path) -> Iterator[Callable[[str], Holding]]:
    """Start processes that hold the node or the workers' lock; they end with the test."""
    with ExitStack() as stack:

        def held(role: str) -> Holding:
            holding = begin(role, state_dir)
            stack.callback(holding.kill)
            return holding

        yield held


def on_disk(state_dir: Path) -> list[str]:
    sids: list[str] = json.loads((state_dir / "sids.json").read_text())
    return sids


# --- one supervisor -----------------------------------------------------------------------------------------------


def test_a_second_supervisor_is_told_who_works_here(hold: Callable[[str], Holding], state_dir: Path) -> None:
    first = hold("node")
    child = int(first.words()[1])
    try:
        pid = first.process.pid
        with pytest.raises(AlreadyRunning, match=rf"^another supervisor \(pid {pid}\) uses {state_dir}; ") as raised:
            Node.open(state_dir)
        assert raised.value.exit_code == 75
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_folder_of_a_killed_supervisor_is_free_although_its_children_live(
    hold: Callable[[str], Holding], open_node: Open
) -> None:
    first = hold("node")
    sid, child = first.words()
    try:
        first.kill()
        assert open_node().earlier_sids() == [sid]
        assert is_running(int(child))
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_closed_folder_is_free(state_dir: Path) -> None:
    node = Node.open(state_dir)
    with pytest.raises(AlreadyRunning):
        Node.open(state_dir)
    node.close()
    node.close()
    Node.open(state_dir).close()


def test_a_new_folder_is_private_and_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    for name, mode in (("made/new", 0o700), ("old", 0o755)):
        Node.open(tmp_path / name).close()
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_a_folder_that_is_a_file_is_a_local_fault(state_dir: Path) -> None:
    state_dir.write_text("")
    with pytest.raises(LocalFault, match=rf"^cannot use the state folder {state_dir}: File exists$"):
        Node.open(state_dir)


# --- its name -----------------------------------------------------------------------------------------------------


def test_the_name_is_made_once(open_node: Open) -> None:
    name = open_node().node_id
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", name)
    assert open_node().node_id == name


def test_a_given_name_comes_first_and_is_not_kept(open_node: Open) -> None:
    made = open_node().node_id
    given = open_node("given")
    assert given.node_id == "given"
    assert given.new_sid().startswith("given-")
    assert open_node().node_id == made


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a b\n", b"x" * 41, b"a\nb\n"])
def test_a_damaged_name_is_replaced(content: bytes, open_node: Open, state_dir: Path) -> None:
    open_node()
    (state_dir / "node_id").write_bytes(content)
    node = open_node()
    assert node.warnings == [f"{state_dir / 'node_id'} was damaged: this node is called {node.node_id} now"]
    again = open_node()
    assert (again.node_id, again.warnings) == (node.node_id, [])


@pytest.mark.parametrize("hostname", ["host", "", "höst name\n", "h" * 300, "-", "a.b.c"])
def test_a_made_name_has_safe_characters_and_a_bound(hostname: str) -> None:
    name = make_node_id(hostname)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+-[0-9a-f]{6}", name)
    assert len(name) <= MAX_NODE_ID
    assert name != make_node_id(hostname)


# --- its supervisor ids -------------------------------------------------------------------------------------------


def test_an_id_is_on_disk_when_it_is_given_out(open_node: Open, state_dir: Path) -> None:
    node = open_node()
    first, second = node.new_sid(), node.new_sid()
    assert re.fullmatch(rf"{re.escape(node.node_id)}-[0-9a-f]{{8}}", first)
    assert on_disk(state_dir) == [first, second]
    assert node.earlier_sids() == []


def test_an_id_that_cannot_be_recorded_is_not_given_out(open_node: Open, state_dir: Path) -> None:
    node = open_node()
    first = node.new_sid()
    (state_dir / "sids.json.tmp").mkdir()
    with pytest.raises(LocalFault, match=r"^cannot write .*/sids\.json: it is a folder$"):
        node.new_sid()
    (state_dir / "sids.json.tmp").rmdir()
    second = node.new_sid()
    assert on_disk(state_dir) == [first, second]


def test_ids_of_earlier_starts_stay_until_they_are_forgotten(open_node: Open, state_dir: Path) -> None:
    first = open_node().new_sid()
    second = open_node().new_sid()
    node = open_node()
    third = node.new_sid()
    assert node.earlier_sids() == [first, second]
    node.forget_sids([first, "unknown"])
    assert node.earlier_sids() == [second]
    assert on_disk(state_dir) == [second, third]
    node.forget_sids([second, third])
    assert open_node().earlier_sids() == []


def test_what_a_killed_commit_left_does_not_matter(open_node: Open, state_dir: Path) -> None:
    sid = open_node().new_sid()
    (state_dir / "sids.json.tmp").write_text('["half')
    node = open_node()
    assert (node.earlier_sids(), node.warnings) == ([sid], [])
    node.new_sid()
    assert not (state_dir / "sids.json.tmp").exists()


@pytest.mark.parametrize(
    "content", [b"", b"[", b"\xff", b"{}", b"null", b"[1]", b'["a b-00000000"]', b'["n"]', b"[" * 100_000]
)
def test_damaged_ids_count_as_none_and_are_told(content: bytes, open_node: Open, state_dir: Path) -> None:
    open_node()
    (state_dir / "sids.json").write_bytes(content)
    node = open_node()
    assert node.warnings == [
        f"{state_dir / 'sids.json'} was damaged: jobs of earlier starts return to the queue when their leases expire"
    ]
    assert node.earlier_sids() == []
    sid = node.new_sid()
    assert on_disk(state_dir) == [sid]


def test_a_service_that_dies_again_and_again_does_not_fill_the_disk(open_node: Open, state_dir: Path) -> None:
    open_node()
    old = [f"n-{number:08x}" for number in range(MAX_SIDS + 5)]
    (state_dir / "sids.json").write_text(json.dumps(old))
    sid = open_node().new_sid()
    assert on_disk(state_dir) == [*old[-MAX_SIDS:], sid]
    assert parse_sids((state_dir / "sids.json").read_bytes()) == on_disk(state_dir)


# --- workers of a killed predecessor ------------------------------------------------------------------------------


def test_old_workers_are_waited_for_until_the_last_is_killed(hold: Callable[[str], Holding], open_node: Open) -> None:
    node = open_node()
    workers = [hold("worker"), hold("worker")]
    for worker in workers:
        assert worker.words() == ["worker"]
    workers[0].kill()
    assert not node.wait_for_old_workers(0.1)
    with ThreadPoolExecutor() as executor:
        waiting = executor.submit(node.wait_for_old_workers, 20)
        workers[1].kill()
        assert waiting.result()


def test_new_workers_can_hold_the_lock_after_the_wait(open_node: Open, state_dir: Path) -> None:
    node = open_node()
    assert node.wait_for_old_workers(0)
    held = [hold_worker_lock(state_dir), hold_worker_lock(state_dir)]
    assert not node.wait_for_old_workers(0)
    for descriptor in held:
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
    assert node.wait_for_old_workers(0)


def test_a_worker_without_its_folder_is_a_local_fault(state_dir: Path) -> None:
    with pytest.raises(LocalFault, match=r"^cannot lock .*/workers\.lock: No such file or directory$"):
        hold_worker_lock(state_dir)
