"""The codes of storage and the HTTP statuses that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import falcon.testing
import pytest

from dlpool.storage.errors import TOO_LARGE, TRANSIENT, ErrorCode, UploadError, offset_mismatch
from dlpool.web.app import make_app
from dlpool.web.errors import STATUSES, http_error
from dlpool.web.wiring import WebServices
from tests.test_scopes import settings_of

CODES = frozenset(get_args(ErrorCode))


def test_every_code_has_a_status() -> None:
    assert STATUSES.keys() == CODES


@pytest.mark.parametrize("code", sorted(CODES))
def test_transient_errors_are_those_of_the_server(code: ErrorCode) -> None:
    assert UploadError(code, "x").is_transient == (STATUSES[code] >= 500) == (code in TRANSIENT)


def test_a_body_that_is_too_large_is_a_413() -> None:
    assert {STATUSES[code] for code in TOO_LARGE} == {413}


def test_an_error_keeps_its_text_and_details() -> None:
    error = http_error(UploadError("conflict", "three chunks, not two", total_chunks=3))
    assert (error.status, error.headers) == (409, {})
    assert error.as_json() == {"error": "three chunks, not two", "code": "conflict", "total_chunks": 3}


def test_a_busy_server_says_when_to_try_again() -> None:
    assert http_error(UploadError("busy", "x", retry_after_s=5)).headers == {"Retry-After": "5"}


def test_a_wrong_offset_names_the_right_one() -> None:
    assert http_error(offset_mismatch(7)).headers == {"Upload-Offset": "7"}


def test_a_backend_without_concatenation_offers_no_final_uploads(tmp_path: Path) -> None:
    services = WebServices(settings_of(tmp_path, auth="off"))
    setattr(services.backend, "concatenator", None)  # noqa: B010 - a property of the interface
    client = falcon.testing.TestClient(make_app(services))
    headers = {"Host": "localhost", "Tus-Resumable": "1.0.0", "Upload-Concat": f"final;/files/{'0' * 32}"}
    assert (
        "concatenation" not in client.simulate_options("/files", headers={"Host": "localhost"}).headers["tus-extension"]
    )
    assert client.simulate_post("/files", headers=headers).status_code == 501
