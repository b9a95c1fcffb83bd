"""The first request of a download: which requests lead to which plan, for a new file and for one that was begun."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from dlpool import errors
from dlpool.config import NetworkSettings, TransferSettings
from dlpool.transfer import planning, probe
from dlpool.transfer.chunks import Chunk
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.answer import Answer
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Source
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.planning import ProbeResult
from dlpool.transfer.probe import Probe, ResumeStep, resume_step
from dlpool.transfer.scheduler import ChunkScheduler, ChunkSnapshot
from dlpool.transfer.target.file.output import FileOutput
from dlpool.transfer.target.protocol import TargetOptions
from tests.conftest import make_data, wait_until
from tests.fakes import Events
from tests.origin import LAST_MODIFIED, Connection, File, Handler, Origin, Request

SIZE = 5000
FIRST = 1000  # bytes of the first range
DATA = make_data(SIZE)
PAGE = {"Content-Type": "text/html"}
CHECKSUM = Checksum("sha256", "0" * 64)
Script = list[Handler]


@dataclass
class Opener:
    """Opens downloads from one origin to one folder."""

    folder: Path
    script: list[Handler] = field(default_factory=list)
    name: str = "f"
    url_path: str = "/f"
    settings: dict[str, Any] = field(default_factory=dict)
    checksum: Checksum | None = None
    is_single: bool = False
    is_folder: bool = False
    earlier: RemoteResource | None = None
    events: Events = field(default_factory=Events)

    def __post_init__(self) -> None:
        self.origin = Origin(self._answer)
        self.client = HttpClient(
            NetworkSettings(connect_timeout=5.0, read_timeout=10.0, network="any"),
            4,
            HostHolds(time.monotonic),
            NetworkMonitor(time.monotonic),
        )
        self.place: FileOutput | None = None
        self.names: list[str] = []

    def __enter__(self) -> Opener:
        self.origin.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.place is not None:
            self.place.close()
        self.client.close()
        self.origin.__exit__(None, None, None)

    @property
    def url(self) -> str:
        return f"{self.origin.url}{self.url_path}"

    @property
    def asked(self) -> list[str]:
        """Each request: HEAD, ``all``, or the range, with "if" after it for one with If-Range."""
        return [_said(request) for request in self.origin.requests]

    def opening(self) -> Probe:
        """The opening of a download of the URL."""
        job = Job(self.url, self.folder / self.name, checksum=self.checksum)
        known: dict[str, Any] = {"min_split_size": FIRST, "sync": False, "connections": 2} | self.settings
        self.context = TransferContext(
            job=job,
            settings=replace(TransferSettings(), **known),
            client=self.client,
            source=Source(self.client, job.url, {}),
            scheduler=ChunkScheduler(time.monotonic),
            rate=cast(Any, None),
            notify=self.events,
            authorize_publish=lambda: None,
            previous_resource=self.earlier,
        )
        if not self.is_folder:
            self.choose_place(self.name)
        return Probe(self.context, self.place, self.choose_place, is_single=self.is_single)

    def choose_place(self, name: str) -> FileOutput:
        self.names.append(name)
        job = self.context.job
        self.place = FileOutput(
            job, self.folder / name, TargetOptions("overwrite", resume=True, sync=False), notify=self.events
        )
        return self.place

    def open(self, opening: Probe | None = None) -> ProbeResult:
        """Run the opening once."""
        opening = opening or self.opening()
        with self.context.new_exchange(ExchangeStats(0, 0.0)) as exchange:
            opened = opening.run(exchange)
            self.body = _body(opened, exchange)
            opened.reply.close()
        return opened

    def begun(
        self, resource: RemoteResource, *, url_path: str | None = None, chunks: list[Chunk] | None = None
    ) -> None:
        """Leave a download of which 2,000 bytes are on disk."""
        job = Job(f"{self.origin.url}{url_path or self.url_path}", self.folder / self.name, checksum=self.checksum)
        place = FileOutput(job, job.target, TargetOptions("overwrite", resume=True, sync=False), notify=self.events)
        place.enable_checkpoints(resource)
        place.part.locked_writer().write(0, memoryview(DATA[:2000]))
        place.checkpoint(ChunkSnapshot(chunks or [Chunk(0, SIZE, 2000, 2000)], 2000))
        place.close()
        self.events.clear()

    def _answer(self, request: Request, connection: Connection) -> None:
        self.script[min(request.number, len(self.script)) - 1](request, connection)


def _said(request: Request) -> str:
    if request.method == "HEAD":
        return "HEAD"
    asked = request.range
    text = "all" if asked is None else f"{asked.start}-{(asked.end or 0) - 1}"
    return f"{text} if" if "if-range" in request.headers else text


def _body(opened: ProbeResult, exchange: Exchange) -> bytes:
    view, data = memoryview(bytearray(64 * 1024)), bytearray()
    while opened.answer.length is None or len(data) < opened.answer.length:
        size = opened.reply.read(view)
        if not size:
            break
        data += view[:size]
    return bytes(data)


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    with Opener(tmp_path) as made:
        yield made


def says(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Handler:
    """A server that always answers so."""

    def handle(_: Request, connection: Connection) -> None:
        connection.answer(status, headers, body)

    return handle


FILE = File(DATA)
PLAIN = File(DATA, serves_ranges=False)


def part_of_unknown(
    start: int = 0, last: int = FIRST - 1, etag: str | None = '"v1"', length: int | None = None
) -> Handler:
    """A server of a part that does not tell the total size."""

    def handle(_: Request, connection: Connection) -> None:
        headers = {"Content-Range": f"bytes {start}-{last}/*"} | ({"ETag": etag} if etag else {})
        if length is not None:
            headers["Content-Length"] = str(length)
        connection.answer(206, headers, DATA[start : last + 1] if length is None else b"")

    return handle


def head(size: int | None, etag: str | None = '"v1"', **extra: str) -> Handler:
    """A server that answers HEAD."""

    def handle(_: Request, connection: Connection) -> None:
        headers = {name.replace("_", "-"): value for name, value in extra.items()}
        if etag:
            headers["ETag"] = etag
        if size is not None:
            headers["Content-Length"] = str(size)
        connection.answer(200, headers, length=False)

    return handle


# --- what an answer means for saved bytes ---

SAVED = RemoteResource(size=100, etag='"v"', content_type="a/b", host="h")
UNTAGGED = RemoteResource(size=100, content_type="a/b", host="h")


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("is_partial", [True, False])
@pytest.mark.parametrize(
    ("saved", "now", "is_proven"),
    [(SAVED, SAVED, None), (SAVED, replace(SAVED, etag='"w"'), True), (UNTAGGED, UNTAGGED, True)],
)
def test_proven_bytes_are_used_if_a_range_was_sent(
    saved: RemoteResource, now: RemoteResource, is_proven: bool | None, is_partial: bool, is_whole: bool
) -> None:
    answer = Answer(now, 0, 100, is_partial=is_partial)
    whole = ResumeStep.RESTART_WITH_BODY if is_whole else ResumeStep.PLAIN_RANGE
    assert resume_step(saved, answer, is_complete=is_whole, is_proven=is_proven) is (
        ResumeStep.USE if is_partial else whole
    )


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(
    ("saved", "now", "is_proven"),
    [(SAVED, replace(SAVED, etag='"w"'), None), (SAVED, SAVED, False), (SAVED, replace(SAVED, size=99), None)],
)
def test_bytes_of_another_version_are_forgotten(
    saved: RemoteResource, now: RemoteResource, is_proven: bool | None, is_whole: bool
) -> None:
    step = resume_step(saved, Answer(now, 0, 100, is_partial=True), is_complete=is_whole, is_proven=is_proven)
    assert step is (ResumeStep.RESTART_WITH_BODY if is_whole else ResumeStep.RESTART)


@pytest.mark.parametrize("has_other_query", [True, False])
def test_an_answer_that_lacks_the_validator_tells_only_of_another_query(has_other_query: bool) -> None:
    answer = Answer(UNTAGGED, 0, 100, is_partial=True)
    if has_other_query:
        assert resume_step(SAVED, answer, is_complete=False, has_other_query=True) is ResumeStep.RESTART
    else:
        with pytest.raises(errors.BadAnswer, match="lacks the validator"):
            resume_step(SAVED, answer, is_complete=False)


@pytest.mark.parametrize("allows_change", [True, False])
@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"content_type": "text/html"}])
def test_what_may_not_replace_saved_bytes_does_so_only_if_that_is_allowed(
    change: dict[str, Any], allows_change: bool
) -> None:
    answer = Answer(replace(SAVED, etag='"w"', **change), 0, 100, is_partial=True)
    if allows_change:
        assert resume_step(SAVED, answer, is_complete=False, allows_change=True) is ResumeStep.RESTART
    else:
        with pytest.raises(errors.UnexpectedContent):
            resume_step(SAVED, answer, is_complete=False, allows_change=False)


# --- a new file ---


@pytest.mark.parametrize(
    ("script", "settings", "asked", "has_ranges"),
    [
        ([FILE], {}, ["0-999"], True),
        ([PLAIN], {}, ["0-999"], False),
        ([says(416), PLAIN], {}, ["0-999", "all"], False),
        ([says(400), PLAIN], {}, ["0-999", "all"], False),
        ([says(501), PLAIN], {}, ["0-999", "all"], False),
        ([says(416, {"Content-Range": "bytes */7"}), PLAIN], {}, ["0-999", "all"], False),
        ([says(200, {"Content-Range": "bytes 0-9/5000"}, DATA[:10]), PLAIN], {}, ["0-999", "all"], False),
        ([FILE], {"probe": "head"}, ["HEAD", "0-999"], True),
        ([head(500), FILE], {"probe": "head"}, ["HEAD", "0-499"], True),
        ([head(1), FILE], {"probe": "head"}, ["HEAD", "0-0"], True),
        ([head(0), FILE], {"probe": "head"}, ["HEAD", "0-999"], True),
        ([head(None), FILE], {"probe": "head"}, ["HEAD", "0-999"], True),
        ([says(405), FILE], {"probe": "head"}, ["HEAD", "0-999"], True),
        ([says(503), FILE], {"probe": "head"}, ["HEAD", "0-999"], True),
        ([head(SIZE, Accept_Ranges="none"), PLAIN], {"probe": "head"}, ["HEAD", "all"], False),
        ([part_of_unknown(), head(SIZE), part_of_unknown()], {}, ["0-999", "HEAD", "0-999"], True),
        ([part_of_unknown(), head(FIRST), part_of_unknown()], {}, ["0-999", "HEAD", "0-999"], True),
        ([part_of_unknown(), head(FIRST - 1), part_of_unknown(), PLAIN], {}, ["0-999", "HEAD", "0-998", "all"], False),
        (
            [part_of_unknown(), head(SIZE, '"w"'), part_of_unknown(), PLAIN],
            {},
            ["0-999", "HEAD", "0-999", "all"],
            False,
        ),
        ([part_of_unknown(), head(SIZE, None), part_of_unknown(), PLAIN], {}, ["0-999", "HEAD", "0-999", "all"], False),
        ([part_of_unknown(), head(0), part_of_unknown(), PLAIN], {}, ["0-999", "HEAD", "0-999", "all"], False),
        ([part_of_unknown(), says(405), part_of_unknown(), PLAIN], {}, ["0-999", "HEAD", "0-999", "all"], False),
        (
            [part_of_unknown(etag=None), head(SIZE, None), part_of_unknown(etag=None), PLAIN],
            {},
            ["0-999", "HEAD", "0-999", "all"],
            False,
        ),
        (
            [part_of_unknown(), head(600), part_of_unknown(last=499), PLAIN],
            {},
            ["0-999", "HEAD", "0-599", "all"],
            False,
        ),
        ([head(SIZE), part_of_unknown()], {"probe": "head"}, ["HEAD", "0-999"], True),
    ],
)
def test_a_new_file_is_planned_by_its_first_answers(
    script: Script, settings: dict[str, Any], asked: list[str], has_ranges: bool, opener: Opener
) -> None:
    opener.script, opener.settings = script, settings
    opened = opener.open()
    assert (opener.asked, opened.plan.has_ranges, opened.answer.is_partial) == (asked, has_ranges, has_ranges)
    size = opened.plan.resource.size
    assert [chunk.end for chunk in opened.chunks.chunks][-1] == size
    assert opened.plan.resumed_from == 0
    assert DATA.startswith(opener.body)
    assert len(opener.body) == (SIZE if not has_ranges else opened.answer.length)
    assert opened.plan.target is opener.place
    assert not opened.plan.target.has_state, "nothing has been committed yet"


def test_a_part_without_a_byte_and_a_total_may_be_of_a_file_of_one_byte(opener: Opener) -> None:
    nothing = part_of_unknown(length=0)
    opener.script = [nothing, head(1), nothing]
    assert opener.open().plan.resource.size == 1
    assert opener.asked == ["0-999", "HEAD", "0-0"]


def test_one_body_is_requested_if_that_is_asked(opener: Opener) -> None:
    opener.script, opener.is_single = [FILE], True
    opened = opener.open()
    assert (opener.asked, opened.plan.has_ranges, opener.body) == (["all"], False, DATA)


@pytest.mark.parametrize("is_single", [True, False])
@pytest.mark.parametrize(
    "empty", [says(416, {"Content-Range": "bytes */0", "ETag": '"e"'}), says(200, {"ETag": '"e"'}, b"")]
)
def test_an_empty_file_has_no_chunk(empty: Handler, is_single: bool, opener: Opener) -> None:
    opener.script, opener.is_single = [empty], is_single
    opened = opener.open()
    assert opener.asked == ["all" if is_single else "0-999"]
    assert (opened.plan.resource.size, opened.plan.resource.etag) == (0, '"e"')
    assert (opened.answer.start, opened.answer.length, opener.body) == (0, 0, b"")
    assert opened.chunks.is_done()


def test_a_file_of_unknown_size_is_one_open_chunk(opener: Opener) -> None:
    def handle(_: Request, connection: Connection) -> None:
        connection.answer(200, body=DATA, length=False)
        connection.hang_up()

    opener.script, opener.settings = [handle], {"max_file_size": 10}
    opened = opener.open()
    assert (opened.plan.resource.size, opened.plan.has_ranges, opener.body) == (None, False, DATA)
    assert opened.plan.target.length == 0


def test_a_server_that_refuses_ranges_gets_one_connection(opener: Opener) -> None:
    opener.script = [replace(FILE, extra={"Accept-Ranges": "none"})]
    opener.settings = {"connections": 4, "min_split_size": 100}
    assert len(opener.open().chunks.chunks) == 1


def test_a_file_is_divided_among_the_connections(opener: Opener) -> None:
    opener.script, opener.settings = [FILE], {"connections": 4, "min_split_size": 100}
    assert len(opener.open().chunks.chunks) == 4


@pytest.mark.parametrize("checksum", [None, CHECKSUM])
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_hashed_is_distributed_in_pieces(
    checksum: Checksum | None, verify: bool, opener: Opener
) -> None:
    opener.script, opener.checksum, opener.settings = [FILE], checksum, {"verify": verify}
    piece = planning.PIECE if checksum and verify else None
    assert opener.open().chunks.piece == piece


@pytest.mark.parametrize("preallocate", ["truncate", "none"])
def test_the_part_file_gets_the_length_of_the_file(preallocate: str, opener: Opener) -> None:
    opener.script, opener.settings = [FILE], {"preallocate": preallocate}
    assert opener.open().plan.target.length == (SIZE if preallocate == "truncate" else 0)


@pytest.mark.parametrize(("limit", "is_refused"), [(SIZE, False), (SIZE - 1, True), (None, False)])
def test_a_file_larger_than_the_limit_is_refused(limit: int | None, is_refused: bool, opener: Opener) -> None:
    opener.script, opener.settings = [FILE], {"max_file_size": limit}
    if is_refused:
        with pytest.raises(errors.PolicyRefused, match="the file has 5000 bytes, max_file_size is 4999"):
            opener.open()
    else:
        opener.open()


# --- the connection and the redirect after an error ---


def test_the_connection_of_a_complete_answer_is_used_again(opener: Opener) -> None:
    opener.script = [says(416), PLAIN]
    opener.open()
    assert [request.connection for request in opener.origin.requests] == [1, 1]


def test_after_a_refused_answer_the_connection_is_closed_and_the_first_url_asked_again(opener: Opener) -> None:
    opener.url_path = "/f.bin"
    opener.script = [
        says(302, {"Location": "/login"}),
        says(200, {**PAGE, "Content-Length": "5000"}),
        says(302, {"Location": "/f"}),
        FILE,
    ]
    opening = opener.opening()
    with pytest.raises(errors.UnexpectedContent) as caught:
        opener.open(opening)
    wait_until(lambda: opener.origin.open_connections <= 0, 10.0)
    assert caught.traceback
    opener.open(opening)
    assert [request.path for request in opener.origin.requests] == ["/f.bin", "/login", "/f.bin", "/f"]


def test_head_is_asked_for_once_although_the_range_is_asked_for_again(opener: Opener) -> None:
    opener.script, opener.settings = [head(500), says(503), FILE], {"probe": "head"}
    opening = opener.opening()
    with pytest.raises(errors.ServerBusy):
        opener.open(opening)
    opener.open(opening)
    assert opener.asked == ["HEAD", "0-499", "0-499"]


def test_a_head_that_leads_where_we_may_not_go_is_an_error(opener: Opener) -> None:
    opener.script, opener.settings = [says(302, {"Location": "ftp://h/f"}), FILE], {"probe": "head"}
    with pytest.raises(errors.PolicyRefused):
        opener.open()
    assert opener.asked == ["HEAD"]


def test_answers_that_contradict_each_other_have_an_end(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_STEPS", 2)
    opener.script = [says(416), FILE]
    opener.open()
    assert opener.place is not None
    opener.place.close()
    opener.script = [part_of_unknown(), head(0), part_of_unknown()]  # and a third request, for the complete file
    with pytest.raises(errors.BadAnswer, match="contradict each other"):
        opener.open()


def test_an_answer_that_contradicts_itself_also_without_a_range_is_final(opener: Opener) -> None:
    opener.script = [says(200, {"Content-Range": "bytes 0-9/5000"}, DATA[:10])]
    with pytest.raises(errors.ContradictoryAnswer, match="also without a range") as caught:
        opener.open()
    assert caught.value.is_final
    assert opener.asked == ["0-999", "all"]


# --- after a round that was begun again ---

EARLIER = RemoteResource(size=SIZE, etag='"v1"', content_type="a/b")


@pytest.mark.parametrize(
    ("earlier", "now", "asked"),
    [
        (EARLIER, PLAIN, ["0-999"]),
        (EARLIER, File(DATA[:4000]), ["0-999"]),
        (EARLIER, File(DATA[:4000], serves_ranges=False), ["0-999", "all"]),
        (EARLIER, File(DATA[:4000], etag='"w"', serves_ranges=False), ["0-999"]),
        (replace(EARLIER, etag=None), File(DATA[:4000], etag=None, serves_ranges=False), ["0-999"]),
        (replace(EARLIER, etag=None), File(DATA[:4000], serves_ranges=False), ["0-999"]),
        (replace(EARLIER, size=None), says(200, {"ETag": '"v1"'}), ["0-999"]),
        (EARLIER, says(200, {"ETag": '"v1"', "Transfer-Encoding": "chunked"}, b"0\r\n\r\n"), ["0-999"]),
    ],
)
def test_less_than_there_was_of_the_same_version_is_a_contradiction(
    earlier: RemoteResource, now: Handler, asked: list[str], opener: Opener
) -> None:
    opener.script, opener.earlier = [now], earlier
    if len(asked) == 1:
        opener.open()
    else:
        with pytest.raises(errors.ContradictoryAnswer, match="4000 bytes as the complete file, which has 5000 bytes"):
            opener.open()
    assert opener.asked == asked


@pytest.mark.parametrize("allow_change", [True, False])
def test_a_page_in_place_of_the_file_of_the_round_before_is_refused(allow_change: bool, opener: Opener) -> None:
    opener.script, opener.earlier = [says(200, PAGE, b"<p>")], EARLIER
    opener.settings = {"allow_change": allow_change}
    if allow_change:
        opener.open()
    else:
        with pytest.raises(errors.UnexpectedContent):
            opener.open()


@pytest.mark.parametrize("html_guard", [True, False])
def test_a_page_in_place_of_a_binary_file_is_refused(html_guard: bool, opener: Opener) -> None:
    opener.script, opener.url_path = [says(200, PAGE, b"<p>")], "/f.bin"
    opener.settings = {"html_guard": html_guard}
    if html_guard:
        with pytest.raises(errors.UnexpectedContent, match="in place of the file"):
            opener.open()
    else:
        opener.open()


# --- names ---


@pytest.mark.parametrize(
    ("url_path", "script", "name"),
    [
        ("/a/b.bin?x=/y", [FILE], "b.bin"),
        ("/a/", [FILE], "download"),
        ("/a/", [says(302, {"Location": "/real.bin"}), FILE], "real.bin"),
        ("/given.bin", [says(302, {"Location": "/real.bin"}), FILE], "given.bin"),
        ("/a", [replace(FILE, extra={"Content-Disposition": "attachment; filename=told.bin"})], "told.bin"),
    ],
)
def test_in_a_folder_a_file_is_named_by_the_server_or_the_url(
    url_path: str, script: Script, name: str, opener: Opener
) -> None:
    opener.url_path, opener.script, opener.is_folder = url_path, script, True
    assert opener.open().plan.target.path == opener.folder / name
    assert opener.names == [name]


# --- codings ---


@pytest.mark.parametrize(
    ("wish", "url_path", "asked", "event"),
    [
        ("auto", "/f", ["0-999", "all"], "content_decoded"),
        ("keep", "/f", ["0-999"], "content_encoded"),
        ("auto", "/f.gz", ["0-999"], "content_encoded"),
    ],
)
def test_an_encoded_body_is_decoded_from_one_stream_or_kept(
    wish: str, url_path: str, asked: list[str], event: str, opener: Opener
) -> None:
    packed = gzip.compress(DATA)
    opener.script = [File(packed, extra={"Content-Encoding": "gzip"})]
    opener.settings, opener.url_path = {"content_encoding": wish}, url_path
    opened = opener.open()
    assert opener.asked == asked
    assert opened.plan.resource.size == (None if event == "content_decoded" else len(packed))
    assert opener.body == (DATA if event == "content_decoded" else packed[:FIRST])
    assert opener.events == [(event, {"encoding": "gzip", "path": str(opener.folder / "f")})]


def test_an_encoded_body_without_a_byte_is_not_decoded(opener: Opener) -> None:
    opener.script = [says(200, {"Content-Encoding": "gzip"})]
    assert opener.open().plan.resource.size == 0


def test_without_a_coding_nothing_is_said(opener: Opener) -> None:
    opener.script = [FILE]
    opener.open()
    assert opener.events == []


# --- a file that was begun ---

TAGGED = RemoteResource(size=SIZE, etag='"v1"', last_modified=LAST_MODIFIED, date="Wed, 02 Oct 2024 10:00:00 GMT")
DATED = replace(TAGGED, etag=None)
OTHER = File(make_data(SIZE, seed=2), etag='"w"')
RESTARTED = "download_restarted"


def refuses_if_range(file: File) -> Handler:
    """A server that answers each If-Range with the complete file, as if it were another version."""

    def handle(request: Request, connection: Connection) -> None:
        (replace(file, serves_ranges="if-range" not in request.headers))(request, connection)

    return handle


@pytest.mark.parametrize(
    ("saved", "script", "asked", "resumed"),
    [
        (TAGGED, [FILE], ["2000-4999 if"], 2000),
        (DATED, [replace(FILE, etag=None)], ["2000-4999 if"], 2000),
        (TAGGED, [OTHER], ["2000-4999 if", "0-999"], 0),
        (TAGGED, [refuses_if_range(FILE)], ["2000-4999 if", "2000-4999"], 2000),
        (TAGGED, [PLAIN], ["2000-4999 if", "2000-4999", "all"], 0),
        (TAGGED, [says(416), PLAIN], ["2000-4999 if", "all"], 0),
        (TAGGED, [says(416, {"Content-Range": "bytes */0"}), says(200, {"ETag": '"e"'})], ["2000-4999 if", "all"], 0),
        (replace(TAGGED, etag='W/"v1"'), [File(DATA, etag='W/"v1"')], ["2000-4999"], 2000),
        (replace(TAGGED, etag='W/"v1"'), [File(DATA, etag='W/"v2"')], ["2000-4999", "0-999"], 0),
    ],
)
def test_a_file_that_was_begun_is_continued_or_begun_again(
    saved: RemoteResource, script: Script, asked: list[str], resumed: int, opener: Opener
) -> None:
    opener.begun(saved)
    opener.script = script
    opened = opener.open()
    assert (opener.asked, opened.plan.resumed_from) == (asked, resumed)
    assert opened.plan.has_ranges is (asked[-1] != "all")
    assert [event for event, _ in opener.events] == [RESTARTED] * (not resumed)
    assert opened.chunks.written() == resumed
    assert opener.body == b"" or opened.answer.start in (0, 2000)
    if resumed:
        assert opener.body == DATA[2000:]


def test_one_body_replaces_what_was_begun(opener: Opener) -> None:
    opener.begun(TAGGED)
    opener.script, opener.is_single = [FILE], True
    opened = opener.open()
    assert (opener.asked, opened.plan.resumed_from, opener.body) == (["all"], 0, DATA)
    assert [event for event, _ in opener.events] == [RESTARTED]


def test_a_file_that_is_complete_is_asked_for_one_byte(opener: Opener) -> None:
    opener.begun(replace(TAGGED, size=2000), chunks=[Chunk(0, 2000, 2000, 2000)])
    opener.script = [File(DATA[:2000])]
    opened = opener.open()
    assert (opener.asked, opened.plan.resumed_from, opened.chunks.is_done()) == (["0-0 if"], 2000, True)


def test_of_several_gaps_the_first_is_asked_for(opener: Opener) -> None:
    opener.begun(
        TAGGED, chunks=[Chunk(0, 1500, 1000, 1000), Chunk(1500, 2500, 2000, 2000), Chunk(2500, SIZE, 2500, 2500)]
    )
    opener.script = [FILE]
    opened = opener.open()
    assert (opener.asked, opened.plan.resumed_from) == (["1000-1499 if"], 1500)


def test_what_the_answer_does_not_tell_is_known_from_before(opener: Opener) -> None:
    opener.begun(replace(TAGGED, digest=("sha256", "0" * 64), content_type="a/b"))
    opener.script = [replace(FILE, last_modified=None)]
    resource = opener.open().plan.resource
    assert (resource.digest, resource.content_type) == (("sha256", "0" * 64), "a/b")
    assert resource.last_modified == LAST_MODIFIED


def test_an_answer_without_the_validator_is_an_error_and_costs_nothing(opener: Opener) -> None:
    opener.begun(TAGGED)
    opener.script = [File(DATA, etag=None, last_modified=None, serves_ranges=False)]
    with pytest.raises(errors.BadAnswer):
        opener.open()
    assert opener.place is not None
    assert opener.place.saved is not None


@pytest.mark.parametrize("allow_change", [True, False])
def test_bytes_without_a_validator_are_not_thrown_away_for_a_page(allow_change: bool, opener: Opener) -> None:
    opener.begun(RemoteResource(size=SIZE, content_type="a/b"))
    opener.script, opener.settings = [says(200, PAGE, b"<p>")], {"allow_change": allow_change}
    if allow_change:
        assert opener.open().plan.target.length == 0
    else:
        with pytest.raises(errors.UnexpectedContent, match="allow-change fetches the new one"):
            opener.open()
        assert opener.place is not None
        assert opener.place.part.length == 2000


def test_bytes_without_a_validator_are_replaced_by_a_file(opener: Opener) -> None:
    opener.begun(RemoteResource(size=SIZE))
    opener.script = [FILE]
    opened = opener.open()
    assert (opener.asked, opened.plan.resumed_from, opened.plan.target.unverifiable) == (["0-999"], 0, None)
    assert opened.plan.target.length == 0


# --- what proves saved bytes ---

NAMELESS = RemoteResource(size=SIZE)
SERVES_NAMELESS = File(DATA, etag=None, last_modified=None)
SERVES_DATED = replace(FILE, etag=None)
DIGEST = replace(DATED, digest=("sha256", "0" * 64))
WITH_DIGEST = replace(SERVES_DATED, extra={"Repr-Digest": f"sha-256=:{'A' * 43}=:"})
SAMPLES = ["0-1999"]


@pytest.mark.parametrize(
    ("saved", "serves", "checksum", "verify", "has_other_query", "asked", "resumed"),
    [
        (TAGGED, FILE, None, True, True, ["2000-4999 if"], 2000),
        (DATED, SERVES_DATED, None, True, False, ["2000-4999 if"], 2000),
        (DATED, SERVES_DATED, None, True, True, [*SAMPLES, "2000-4999 if"], 2000),
        (DATED, File(DATA, etag='"new"'), None, True, True, [*SAMPLES, "2000-4999 if"], 2000),
        (DATED, File(OTHER.data, etag=None), None, True, True, [*SAMPLES, "2000-4999", "0-999"], 0),
        (DIGEST, WITH_DIGEST, None, True, True, [*SAMPLES, "2000-4999 if"], 2000),
        (NAMELESS, SERVES_NAMELESS, CHECKSUM, True, False, ["2000-4999"], 2000),
        (NAMELESS, SERVES_NAMELESS, CHECKSUM, True, True, ["2000-4999"], 2000),
        (NAMELESS, SERVES_NAMELESS, CHECKSUM, False, False, ["2000-4999", "0-999"], 0),
        (NAMELESS, File(DATA[:4000], etag=None, last_modified=None), CHECKSUM, True, False, ["2000-4999", "0-999"], 0),
    ],
)
def test_saved_bytes_are_proven_by_a_validator_a_checksum_or_samples(
    saved: RemoteResource,
    serves: Handler,
    checksum: Checksum | None,
    verify: bool,
    has_other_query: bool,
    asked: list[str],
    resumed: int,
    opener: Opener,
) -> None:
    opener.checksum, opener.script, opener.settings = checksum, [serves], {"verify": verify}
    opener.begun(saved, url_path="/f?sign=1" if has_other_query else None)
    opened = opener.open()
    assert (opener.asked, opened.plan.resumed_from) == (asked, resumed)


@pytest.mark.parametrize(
    ("sample", "asked", "resumed"),
    [
        (says(416), ["0-1999", "2000-4999", "0-999"], 0),
        (replace(SERVES_DATED, serves_ranges=False), ["0-1999", "2000-4999", "0-999"], 0),
        (File(DATA, etag=None, last_modified="Wed, 02 Oct 2024 09:00:00 GMT"), ["0-1999", "2000-4999", "0-999"], 0),
        (SERVES_DATED, ["0-1999", "2000-4999 if"], 2000),
    ],
)
def test_a_sample_agrees_only_if_it_is_a_part_of_the_same_version(
    sample: Handler, asked: list[str], resumed: int, opener: Opener
) -> None:
    opener.begun(DATED, url_path="/f?sign=1")
    opener.script = [sample, SERVES_DATED]
    opened = opener.open()
    assert (opener.asked, opened.plan.resumed_from) == (asked, resumed)


@pytest.mark.parametrize("allow_change", [True, False])
def test_a_page_in_place_of_a_sample_is_refused(allow_change: bool, opener: Opener) -> None:
    opener.begun(replace(DATED, content_type="a/b"), url_path="/f?sign=1")
    page = says(200, {**PAGE, "Last-Modified": "Wed, 02 Oct 2024 09:00:00 GMT"}, b"<p>")
    opener.script, opener.settings = [page, SERVES_DATED], {"allow_change": allow_change}
    if allow_change:
        assert opener.open().plan.resumed_from == 0
    else:
        with pytest.raises(errors.UnexpectedContent):
            opener.open()
        assert opener.asked == ["0-1999"]
    wait_until(lambda: opener.origin.open_connections <= 1, 10.0)


def test_samples_leave_no_descriptor_and_no_connection(opener: Opener) -> None:

    opener.begun(DATED, url_path="/f?sign=1")
    opener.script = [SERVES_DATED]
    opening = opener.opening()
    assert opener.place is not None
    before = len(os.listdir("/proc/self/fd"))
    opener.open(opening)
    opener.client.close()
    wait_until(lambda: opener.origin.open_connections <= 0, 10.0)
    # threads that earlier tests left open and close others meanwhile
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, 10.0)
    assert {request.connection for request in opener.origin.requests} == {1}


def test_samples_are_asked_for_where_the_server_names_the_file(opener: Opener) -> None:
    opener.begun(DATED, url_path="/f?sign=1")
    opener.script, opener.is_folder = [SERVES_DATED], True
    opened = opener.open()
    assert (opener.asked, opened.plan.resumed_from) == (["0-999", "0-1999", "2000-4999 if"], 2000)
