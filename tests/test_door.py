"""With which keys dlpool-web starts at which addresses, and that ``dlpool config check`` says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlpool.config import WebSettings
from dlpool.config.web_access import check_web_access
from dlpool.errors import ConfigurationError
from dlpool.web.auth import Authenticator

SECRET = "0123456789abcdef"


def is_refused(check: object, settings: WebSettings) -> bool:
    assert callable(check)
    try:
        check(settings)
    except ConfigurationError as error:
        assert str(error).startswith("[web] ")
        return True
    return False


@pytest.mark.parametrize(
    "bind", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "a.example"]
)
@pytest.mark.parametrize("auth", ["auto", "on", "off"])
@pytest.mark.parametrize("key", ["none", "secret", "file", "jwt", "short", "short jwt", "short RS", "empty", "missing"])
def test_a_door_that_others_reach_has_a_key(bind: str, auth: str, key: str, tmp_path: Path) -> None:
    good, empty = tmp_path / "good", tmp_path / "empty"
    good.write_text(SECRET + "\n")
    empty.touch()
    settings = {
        "none": WebSettings(bind=bind, auth=auth),
        "secret": WebSettings(bind=bind, auth=auth, secret_key=SECRET),
        "file": WebSettings(bind=bind, auth=auth, secret_key_file=str(good)),
        "jwt": WebSettings(bind=bind, auth=auth, jwt_key=2 * SECRET),
        "short": WebSettings(bind=bind, auth=auth, secret_key=SECRET[1:]),
        "short jwt": WebSettings(bind=bind, auth=auth, jwt_key_file=str(good)),
        "short RS": WebSettings(bind=bind, auth=auth, secret_key="x", jwt_algorithms="RS256"),
        "empty": WebSettings(bind=bind, auth=auth, jwt_key_file=str(empty)),
        "missing": WebSettings(bind=bind, auth=auth, secret_key_file=str(tmp_path / "nowhere")),
    }[key]
    is_open = bind not in ("127.0.0.1", "127.9.9.9", "::1", "localhost")
    is_asked = auth == "on" or (is_open and auth == "auto")
    wanted = key not in ("none", "secret", "file", "jwt") or (is_open and auth == "off") or (is_asked and key == "none")
    assert (is_refused(check_web_access, settings), is_refused(Authenticator, settings)) == (wanted, wanted)
