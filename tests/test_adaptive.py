"""``connections = auto``: a running download gets more connections, and gives them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import Fetcher, make_data, sha256
from tests.handlers import Admits
from tests.origin import File, Origin
from tests.processes import run

KIB, MIB = 1024, 1024 * 1024
Serve = Callable[..., Origin]
AUTO: dict[str, Any] = {"connections": "auto", "retry_delay": 0.2, "retries": 5}


def test_connections_are_added_while_they_bring_more(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = make_data(6 * MIB)
    origin = serve(File(data, block=16 * KIB, pause_s=0.08))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", **AUTO)
    assert sha256((tmp_path / "f").read_bytes()) == sha256(data)
    assert 8 <= outcome.connections <= 16
    assert origin.most_connections > 4
    grown = fetch.named("connections_changed")
    assert grown[0] == {"host": origin.url.removeprefix("http://"), "connections": 8, "reason": "growth"}


def test_connections_that_the_server_refuses_are_given_up(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = make_data(2 * MIB)
    origin = serve(Admits(2, File(data, block=16 * KIB, pause_s=0.02)))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", **AUTO)
    assert sha256((tmp_path / "f").read_bytes()) == sha256(data)
    assert outcome.connections == 4
    changes = [(one["connections"], one["reason"]) for one in fetch.named("connections_changed")]
    assert changes[0] == (2, "server_busy")


def test_a_host_is_known_by_the_name_that_was_asked(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = make_data(2 * MIB)
    mirror = serve(Admits(2, File(data, block=16 * KIB, pause_s=0.02)))
    origin = serve(lambda _request, connection: connection.answer(302, {"Location": f"{mirror.url}/f"}))
    fetch(f"{origin.url}/f", tmp_path / "f", **AUTO)
    assert sha256((tmp_path / "f").read_bytes()) == sha256(data)
    first = fetch.named("connections_changed")[0]
    assert first == {"host": origin.url.removeprefix("http://"), "connections": 2, "reason": "server_busy"}


def test_what_was_learnt_of_a_host_is_there_for_the_next_file(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = make_data(MIB)
    origin = serve(Admits(2, File(data, block=16 * KIB, pause_s=0.02)))
    client = fetch.client()
    fetch(f"{origin.url}/f", tmp_path / "f", **AUTO, client=client)
    outcome = fetch(f"{origin.url}/g", tmp_path / "g", **AUTO, client=client)
    assert outcome.connections == 2


def test_a_dismissed_connection_harms_no_checksum(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = make_data(2 * MIB)
    origin = serve(Admits(2, File(data, block=16 * KIB, pause_s=0.02)))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", **AUTO, checksum=f"sha256:{sha256(data)}")
    assert outcome.checksum == f"sha256:{sha256(data)}"


def test_auto_is_an_option_of_the_command(serve: Serve, tmp_path: Path) -> None:
    data = make_data(MIB)
    origin = serve(File(data))
    assert run("fetch", "-q", "--network", "any", "-c", "auto", f"{origin.url}/f", f"{tmp_path}/f").code == 0
    assert (tmp_path / "f").read_bytes() == data
    wrong = run("fetch", "-c", "some", f"{origin.url}/f", f"{tmp_path}/g")
    assert wrong.code == 2
    assert "'some' is neither a whole number nor auto" in wrong.err
