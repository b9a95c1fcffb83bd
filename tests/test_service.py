"""The service does its main job, and ends as it should."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import make_data
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.redis_server import RedisServer

DATA = make_data(300_000)


def test_jobs_become_files_and_records_and_the_service_ends_clean(redis_server: RedisServer, tmp_path: Path) -> None:
    client = Client(redis_server.client())
    with Origin(File(DATA)) as origin, Supervisor(tmp_path, redis_server.url) as service:
        urls = [f"{origin.url}/{number}" for number in range(12)]
        for number, url in enumerate(urls):
            client.push(url, f"deep/er/{number}.bin")
        client.wait_for(*urls)
        assert service.stop() == 0, service.said()
    assert all((service.out / f"deep/er/{number}.bin").read_bytes() == DATA for number in range(12))
    assert len(list((service.out / "deep/er").iterdir())) == 12
    assert client.leftovers() == []
