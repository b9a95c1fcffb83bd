"""A model of one task and a store on the disk, asked the same in any order: they never disagree."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dlpool.storage.errors import UploadError
from tests.uploads import ID, files_below, leftovers, md5, merge, refused, send, state, store_in, uploaded

TOTAL = 3
INDEX = st.integers(0, TOTAL - 1)
NAME = st.sampled_from(["one", "two"])
DATA = st.sampled_from([b"", b"a", b"bb" * 50, b"c" * 5000])


class StoreMachine(RuleBasedStateMachine):
    """``chunks``: the stored ones; ``status``: by the table of states."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = store_in(self.folder)
        self.forget()
        self.published: dict[str, bytes] = {}

    def forget(self) -> None:
        self.chunks: dict[int, bytes] = {}
        self.changed: set[int] = set()
        self.status, self.name, self.result = "not_found", "", b""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def takes_chunks(self) -> bool:
        return self.status in ("not_found", "pending", "uploading", "failed")

    @rule(index=INDEX, data=DATA, is_right=st.booleans())
    def a_chunk_comes(self, index: int, data: bytes, is_right: bool) -> None:
        if not self.takes_chunks:
            with refused(409, f"task_{self.status}"):
                send(self.store, index, data, md5=md5(data if is_right else data + b"x"))
        elif not is_right:
            with refused(400, "md5_mismatch"):
                send(self.store, index, data, md5=md5(data + b"x"), total_chunks=TOTAL)
        else:
            send(self.store, index, data, md5=md5(data), total_chunks=TOTAL)
            self.chunks[index], self.status = data, "uploading"
            self.changed.discard(index)

    @rule(data=DATA)
    def all_chunks_come(self, data: bytes) -> None:
        for index in range(TOTAL):
            self.a_chunk_comes(index, data, is_right=True)

    @rule(name=NAME, is_expected=st.booleans(), changed=st.none() | INDEX)
    def a_whole_upload_comes(self, name: str, is_expected: bool, changed: int | None) -> None:
        self.all_chunks_come(b"whole")
        if changed is not None:
            self.a_byte_is_changed(changed)
        self.a_merge_is_asked_for(name, is_expected)

    @rule(index=INDEX)
    def a_chunk_is_lost(self, index: int) -> None:
        for path in Path(self.store.settings.upload_dir).rglob(f"{index}.chunk"):
            path.unlink()
            del self.chunks[index]
            self.changed.discard(index)

    @rule(index=INDEX)
    def a_byte_is_changed(self, index: int) -> None:
        for path in Path(self.store.settings.upload_dir).rglob(f"{index}.chunk"):
            if self.chunks[index]:
                data = bytearray(path.read_bytes())
                data[0] ^= 1
                path.write_bytes(data)
                self.changed.symmetric_difference_update({index})

    @rule(name=NAME, is_expected=st.booleans())
    def a_merge_is_asked_for(self, name: str, is_expected: bool) -> None:
        whole = b"".join(self.chunks[index] for index in sorted(self.chunks))
        try:
            result = merge(self.store, TOTAL, name, expected_md5=md5(whole) if is_expected else None)
        except UploadError as error:
            assert error.code == self.why_not(name), error.text
        else:
            assert self.why_not(name) == ""
            if self.status != "completed":
                self.status, self.name, self.result = "completed", name, whole
                self.published[name] = whole
            assert result.md5 == md5(self.result)

    def why_not(self, name: str) -> str:
        """Return the code of the error that a merge raises, and apply it to the model."""
        if self.status == "not_found":
            return "no_such_task"
        if self.status == "paused":
            return "task_paused"
        if self.status == "completed":
            return "" if name == self.name else "task_completed"
        if len(self.chunks) < TOTAL:
            return "chunks_missing"
        if name in self.published:
            self.status = "failed"
            return "file_exists"
        if self.changed:
            for index in self.changed:
                del self.chunks[index]
            self.changed, self.status = set(), "failed"
            return "chunks_missing"
        return ""

    @rule(verb=st.sampled_from(["pause", "resume", "delete"]))
    def it_is_told_to(self, verb: str) -> None:
        allowed = {
            "pause": ("uploading",),
            "resume": ("paused", "failed"),
            "delete": ("paused", "uploading", "failed", "completed", "pending"),
        }[verb]
        try:
            getattr(self.store, verb)(ID, None)
        except UploadError as error:
            assert self.status not in allowed, error.text
        else:
            assert self.status in allowed
            self.status = {"pause": "paused", "resume": "uploading", "delete": "not_found"}[verb]
            if verb == "delete":
                self.forget()

    @rule()
    def a_sweep_comes_from_a_new_process(self) -> None:
        self.store = store_in(self.folder)
        self.store.sweep()

    @invariant()
    def they_agree(self) -> None:
        wanted = list(range(TOTAL)) if self.status == "completed" else sorted(self.chunks)
        assert (uploaded(self.store), state(self.store)) == (wanted, self.status)
        if self.status == "completed":
            assert not list(Path(self.store.settings.upload_dir).rglob("*.chunk"))
        merged = self.folder / "merged"
        assert {name: (merged / name).read_bytes() for name in files_below(merged)} == self.published
        assert leftovers(self.store) == []


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
