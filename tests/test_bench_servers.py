"""The servers of scripts/bench: which connections are slow, and how far away they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scripts.bench_servers import FAR, paced_server, rate_of
from tests.conftest import make_data

MIB = 1024 * 1024


def read(prefix: tuple[str, ...], url: str, spans: str) -> bytes:
    return subprocess.run([*prefix, "curl", "-sS", "-r", spans, url], capture_output=True, check=True).stdout


def test_the_number_of_a_connection_decides_its_rate() -> None:
    assert [rate_of(number, "ffs", 20, 1) for number in range(6)] == [20, 20, 1, 20, 20, 1]
    shares = [rate_of(number, "p40:7", 20, 1) for number in range(1000)]
    assert shares == [rate_of(number, "p40:7", 20, 1) for number in range(1000)]
    assert 350 < shares.count(1) < 450
    assert shares != [rate_of(number, "p40:8", 20, 1) for number in range(1000)]


def test_each_run_begins_with_connection_0(tmp_path: Path) -> None:
    data = make_data(MIB)
    (tmp_path / "f").write_bytes(data)
    with paced_server(tmp_path / "f", fast=100 * MIB, slow=50 * MIB) as server:
        for _ in range(2):
            server.begin("fs")
            assert read(server.prefix, server.url, "0-9") == data[:10]
            assert read(server.prefix, server.url, "500000-") == data[500000:]
            made = server.connections()
            assert [(one.number, one.rate, one.requests) for one in made] == [
                (0, 100 * MIB, 1),
                (1, 50 * MIB, 1),
            ]
            assert [one.sent for one in made] == [10, MIB - 500000]


@pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="needs TUN devices")
def test_a_distant_server_answers_after_a_round_trip(tmp_path: Path) -> None:
    data = make_data(MIB)
    (tmp_path / "f").write_bytes(data)
    with paced_server(tmp_path / "f", fast=100 * MIB, rtt_s=0.05) as server:
        assert FAR in server.url
        command = [*server.prefix, "curl", "-sS", "-o", str(tmp_path / "out"), "-w", "%{time_connect}", server.url]
        connect_s = float(subprocess.run(command, capture_output=True, check=True).stdout)
    assert connect_s >= 0.05
    assert (tmp_path / "out").read_bytes() == data
