"""What happens when the first process of dlpool-web is killed, and nobody is left to tell its workers."""

from __future__ import annotations

from pathlib import Path

import psutil
import requests

from tests.conftest import wait_until
from tests.web import WebServer


def test_workers_without_their_first_process_end_and_the_next_start_has_what_was_answered(tmp_path: Path) -> None:
    with WebServer(tmp_path) as server:
        sent = requests.post(
            f"{server.url}/upload_chunk?file_id=f&chunk_index=0",
            data=b"abc",
            timeout=10,
            headers={"Content-Type": "application/octet-stream"},
        )
        assert sent.status_code == 200
        workers = server.workers()
        assert server.process is not None and workers
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(psutil.pid_exists(worker.pid) and worker.is_running() for worker in workers))
        server.start()
        status = requests.get(f"{server.url}/upload_status?file_id=f", timeout=10).json()
        assert status["uploaded_chunks"] == [0]
