"""Outcomes that Redis could not be told yet, on disk: a file each, committed by
temporary file and rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from dlpool.disk import atomic_write, translated
from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.transitions import FinishRequest, JobLease

FINAL_OUTCOMES = ("success", "failed", "cancelled")


class Spool:
    """The folder ``STATE_DIR/spool``. Used by the record thread only. A name is the
    ticket, so a file is never two."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "spool"
        with translated(f"make {self.folder}"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for unfinished in self.folder.glob(
                "*.tmp"
            ):  # a kill came before its rename: its job is still in Redis
                unfinished.unlink()
        self._kept: set[JobLease] = set()

    def __len__(self) -> int:
        return sum(1 for name in os.listdir(self.folder) if name.endswith(".json"))

    def store(self, sid: str, ending: FinishRequest) -> None:
        """Commit a final outcome of the supervisor ``sid``, once. Raises LocalFault."""
        path = self._path(ending.lease)
        if ending.disposition not in FINAL_OUTCOMES or ending.lease in self._kept:
            return
        fields = asdict(ending) | {"sid": sid}
        if ending.record is not None:
            fields["record"]["value"] = ending.record.value.decode()
        with translated(f"write {path}"):
            atomic_write(path, json.dumps(fields).encode(), sync=True, mode=0o600)
        self._kept.add(ending.lease)

    def remove(self, ticket: JobLease) -> None:
        """Redis knows."""
        if ticket in self._kept:
            with suppress(OSError):
                self._path(ticket).unlink(missing_ok=True)
            self._kept.discard(ticket)

    def stored(self) -> Iterator[tuple[str, FinishRequest]]:
        """What an earlier start left: sid and outcome. Damaged files are set aside
        under another name."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
                record = fields["record"]
                if record is not None:
                    record = ClientRecord(
                        record["key"], record["value"].encode(), record["field"]
                    )
                ticket = JobLease(
                    str(fields["ticket"]["id"]), int(fields["ticket"]["fence"])
                )
                self._kept.add(ticket)
                yield (
                    str(fields["sid"]),
                    FinishRequest(
                        ticket,
                        fields["outcome"],
                        record,
                        dict(fields["note"]),
                        trace_id=str(fields.get("trace_id", "")),
                    ),
                )
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                with suppress(OSError):
                    path.rename(path.with_suffix(".damaged"))

    def _path(self, ticket: JobLease) -> Path:
        return self.folder / f"{ticket}.json"
