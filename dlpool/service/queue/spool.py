"""The spool: files with the results that Redis does not have yet.

Each result is a file of its own, which is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlpool.disk import atomic_write
from dlpool.disk_errors import translated
from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.states import TERMINAL_DISPOSITIONS, Disposition
from dlpool.jobs.transitions import FinishRequest, JobLease


class Spool:
    """The folder ``STATE_DIR/spool``. Used by the record thread, and at the start by
    the heartbeat thread.

    Each file is named after the lease of its job, so no result has two files.
    """

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "spool"
        with translated(f"make {self.folder}"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for unfinished in self.folder.glob("*.tmp"):
                # of a killed process: the job is still in Redis
                unfinished.unlink()
        self._stored: set[JobLease] = set()

    def __len__(self) -> int:
        return sum(1 for name in os.listdir(self.folder) if name.endswith(".json"))

    def store(self, sid: str, request: FinishRequest) -> None:
        """Write a result of the supervisor ``sid`` durably. Raises LocalFault.

        Ignores a result that is not final, or is stored already.
        """
        path = self._path(request.lease)
        if (
            request.disposition not in TERMINAL_DISPOSITIONS
            or request.lease in self._stored
        ):
            return
        fields = asdict(request) | {"sid": sid}
        if request.record is not None:
            fields["record"]["value"] = request.record.value.decode()
        with translated(f"write {path}"):
            atomic_write(path, json.dumps(fields).encode(), sync=True, mode=0o600)
        self._stored.add(request.lease)

    def remove(self, lease: JobLease) -> None:
        """Remove the file of a result that Redis has recorded."""
        if lease in self._stored:
            with suppress(OSError):
                self._path(lease).unlink(missing_ok=True)
            self._stored.discard(lease)

    def stored(self) -> Iterator[tuple[str, FinishRequest]]:
        """Yield the results that earlier starts left, each with its supervisor id.

        Damaged files are renamed to ``*.damaged``.
        """
        for path in sorted(self.folder.glob("*.json")):
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
                request = _parse_request(fields)
                self._stored.add(request.lease)
                yield str(fields["sid"]), request
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                with suppress(OSError):
                    path.rename(path.with_suffix(".damaged"))

    def _path(self, lease: JobLease) -> Path:
        return self.folder / f"{lease}.json"


def _parse_request(fields: dict[str, Any]) -> FinishRequest:
    record, lease = fields["record"], fields["lease"]
    return FinishRequest(
        JobLease(str(lease["job_id"]), int(lease["fence"])),
        Disposition(fields["disposition"]),
        None
        if record is None
        else ClientRecord(record["key"], record["value"].encode(), record["field"]),
        dict(fields["note"]),
        trace_id=str(fields.get("trace_id", "")),
    )
