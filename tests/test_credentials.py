"""Credentials and cookies are sent as curl sends them: from the URL, from ``.netrc``, and beside those of a server."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from dlpool.errors import ConfigurationError, ProtocolBroken
from dlpool.transfer.http.credentials import Entry, netrc_user, parse_netrc
from dlpool.transfer.http.urls import merge_cookies
from tests.conftest import Fetcher
from tests.handlers import Serve, redirect
from tests.origin import Connection, File, Handler, Request

DATA = b"some bytes"


def basic(text: str) -> str:
    return "Basic " + b64encode(text.encode()).decode()


# --- user info ---


@pytest.mark.parametrize(
    ("info", "sent"),
    [
        ("token@", "token:"),
        ("user:@", "user:"),
        (":pw@", ":pw"),
        ("user:pw@", "user:pw"),
        ("user:p@ss@", "user:p@ss"),
        ("us%3Aer:p%40ss%2F@", "us:er:p@ss/"),
        ("%C3%BCser:pä@", "üser:pä"),
    ],
)
def test_user_info_is_sent_as_basic_credentials(
    info: str, sent: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA))
    fetch(f"http://{info}127.0.0.1:{origin.port}/f", tmp_path / "f")
    (request,) = origin.requests
    assert request.headers["authorization"] == basic(sent)
    assert request.path == "/f"
    assert request.headers["host"] == f"127.0.0.1:{origin.port}"


def test_an_empty_user_info_is_none(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    fetch(f"http://@127.0.0.1:{origin.port}/f", tmp_path / "f")
    assert "authorization" not in origin.requests[0].headers


@pytest.mark.parametrize(("info", "sent"), [("token@", "token:"), ("u:p@", "u:p"), ("ü:p%40@", "ü:p@"), ("", None)])
def test_user_info_of_a_proxy_is_sent_to_the_proxy(
    info: str, sent: str | None, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    proxy = serve(File(DATA))
    address = f"http://{info}127.0.0.1:{proxy.port}"
    fetch("http://me:pw@origin.test/f", tmp_path / "f", network={"proxy": address})
    (request,) = proxy.requests
    assert request.headers.get("proxy-authorization") == (None if sent is None else basic(sent))
    assert request.headers["authorization"] == basic("me:pw")


def test_user_info_of_a_location_is_sent_to_its_origin_only(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    last = serve(File(DATA))
    middle = serve(redirect(f"{last.url}/f"))
    first = serve(redirect(f"http://other:secret@127.0.0.1:{middle.port}/f"))
    fetch(f"http://me:pw@127.0.0.1:{first.port}/f", tmp_path / "f")
    sent = [origin.requests[0].headers.get("authorization") for origin in (first, middle, last)]
    assert sent == [basic("me:pw"), basic("other:secret"), None]
    assert middle.requests[0].path == "/f"


def test_a_location_does_not_replace_the_users_credentials(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.number == 1:
            connection.answer(302, {"Location": f"http://other:secret@127.0.0.1:{origin.port}/g"})
        else:
            File(DATA)(request, connection)

    origin = serve(handle)
    fetch(f"http://me:pw@127.0.0.1:{origin.port}/f", tmp_path / "f")
    assert [request.headers["authorization"] for request in origin.requests] == [basic("me:pw")] * 2


def test_a_location_may_bring_credentials_where_the_user_gave_none(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if "authorization" in request.headers:
            File(DATA)(request, connection)
        else:
            connection.answer(302, {"Location": f"http://other:secret@127.0.0.1:{origin.port}/g"})

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    assert [request.headers.get("authorization") for request in origin.requests] == [None, basic("other:secret")]


# --- netrc ---


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my.netrc"
    monkeypatch.setenv("NETRC", str(path))
    return path


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("machine h login me password pw", [Entry("h", "me", "pw")]),
        ("machine h\n  login me\n\n  password pw\n", [Entry("h", "me", "pw")]),
        ("MACHINE h Login me PASSWORD PW", [Entry("h", "me", "PW")]),
        ("Default\nLOGIN me", [Entry(None, "me")]),
        ("machine H user me passwd pw account x", [Entry("h", "me", "pw")]),
        ("# all\nmachine h login me # not the word\npassword #pw", [Entry("h", "me", "#pw")]),
        ('machine h login "m e" password "p\\"w\\\\"', [Entry("h", "m e", 'p"w\\')]),
        ("machine a login x\nmachine b password y", [Entry("a", "x"), Entry("b", None, "y")]),
        ("default login d password e\nmachine h login x", [Entry(None, "d", "e"), Entry("h", "x")]),
        ("macdef init\nput bad\nbye\n\nmachine h login x", [Entry("h", "x")]),
        ("machine h login x macdef m\nanything\n\nmachine i login y", [Entry("h", "x"), Entry("i", "y")]),
        ("\ufeffmachine h login x\r\nmachine i login y\r\n", [Entry("h", "x"), Entry("i", "y")]),
        ("machine h login login password machine", [Entry("h", "login", "machine")]),
        ("", []),
        ("\n# nothing\n", []),
    ],
)
def test_a_netrc_is_read_as_its_manual_says(text: str, entries: list[Entry]) -> None:
    assert parse_netrc(text) == entries


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("machine 127.0.0.1 login me password secret\nbogus line\n", 2),
        ("machine 127.0.0.1 logn me password secret\n", 1),
        ("machine 127.0.0.1 login me password secret word\n", 1),
        ("login me password secret\n", 1),
        ("\n\nmachine\n", 3),
        ("machine 127.0.0.1 login\nmachine b login secret\n", 1),
        ('machine 127.0.0.1 login me\npassword "secret\n', 2),
        ("machine other login me\n\nmachne 127.0.0.1 login me password secret\n", 3),
        ("default secret\n", 1),
    ],
)
def test_a_broken_line_of_a_netrc_is_named_before_any_request(
    text: str, line: int, netrc: Path, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    netrc.write_text(text)
    origin = serve(File(DATA))
    with pytest.raises(ConfigurationError, match=rf"my\.netrc, line {line}: ") as raised:
        fetch(f"{origin.url}/f", tmp_path / "f", network={"netrc": True})
    assert "secret" not in str(raised.value)
    assert origin.requests == []


@pytest.mark.parametrize("how", ["not asked for", "user info"])
def test_a_netrc_that_is_not_needed_is_not_read(
    how: str, netrc: Path, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    netrc.write_text("bogus\n")
    origin = serve(File(DATA))
    info = "me:pw@" if how == "user info" else ""
    fetch(f"http://{info}127.0.0.1:{origin.port}/f", tmp_path / "f", network={"netrc": how == "user info"})
    assert len(origin.requests) == 1


def test_a_netrc_that_cannot_be_read_is_an_error(netrc: Path) -> None:
    netrc.mkdir()
    with pytest.raises(ConfigurationError, match=r"my\.netrc cannot be read"):
        netrc_user("http://h/")


def test_no_netrc_means_no_credentials(netrc: Path) -> None:
    assert not netrc.exists()
    assert netrc_user("http://h/") is None


NETRC = """\
machine h login first password 1
machine h login second password 2
machine h:8080 login port password 3
machine only-password password 4
machine empty
default login anyone password 5
"""


@pytest.mark.parametrize(
    ("url", "login", "user"),
    [
        ("http://h/f", None, ("first", "1")),
        ("http://H:80/f", None, ("first", "1")),
        ("http://h:8080/f", None, ("port", "3")),
        ("http://h/f", "second", ("second", "2")),
        ("http://h/f", "stranger", None),
        ("http://only-password/f", None, ("", "4")),
        ("http://empty/f", None, ("anyone", "5")),
        ("http://elsewhere/f", None, ("anyone", "5")),
        ("http://elsewhere/f", "anyone", ("anyone", "5")),
    ],
)
def test_the_entry_for_a_host_is_found(url: str, login: str | None, user: tuple[str, str] | None, netrc: Path) -> None:
    netrc.write_text(NETRC)
    assert netrc_user(url, login) == user


def test_a_netrc_completes_the_user_of_a_url(netrc: Path, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    netrc.write_text("machine 127.0.0.1 login other password x\nmachine 127.0.0.1 login me password pw\n")
    origin = serve(File(DATA))
    for user in ("me", "token"):
        fetch(f"http://{user}@127.0.0.1:{origin.port}/f", tmp_path / "f", network={"netrc": True})
    assert [request.headers["authorization"] for request in origin.requests] == [basic("me:pw"), basic("token:")]


def test_a_header_of_the_user_comes_before_a_netrc(netrc: Path, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    netrc.write_text("machine 127.0.0.1 login me password pw\n")
    origin = serve(File(DATA))
    fetch(f"{origin.url}/f", tmp_path / "f", headers={"authorization": "Bearer x"}, network={"netrc": True})
    assert origin.requests[0].headers["authorization"] == "Bearer x"


# --- cookies ---


@pytest.mark.parametrize(
    ("given", "stored", "sent"),
    [
        (None, None, None),
        ("a=b", None, "a=b"),
        (None, "c=d", "c=d"),
        ("a=b", "c=d", "a=b; c=d"),
        ("a=b; c=old", "c=new", "a=b; c=new"),
        ("a=b;;  x", "c=d; e=f", "a=b; x; c=d; e=f"),
        ("c=old", "c=new", "c=new"),
    ],
)
def test_cookies_are_merged(given: str | None, stored: str | None, sent: str | None) -> None:
    assert merge_cookies(given, stored) == sent


def wants_cookie(pair: str) -> Handler:
    """Redirects to the same URL until it gets a cookie, which it sets."""

    def handle(request: Request, connection: Connection) -> None:
        if pair in request.headers.get("cookie", ""):
            File(DATA)(request, connection)
        else:
            connection.answer(302, {"Location": request.path, "Set-Cookie": f"{pair}; Path=/"})

    return handle


def with_cookie(location: str) -> Handler:
    """Redirects everything, and sets a cookie."""
    headers = {"Location": location, "Set-Cookie": "seen=yes; Path=/"}
    return lambda _request, connection: connection.answer(302, headers)


@pytest.mark.parametrize("name", ["Cookie", "cookie", "COOKIE"])
def test_a_cookie_of_the_user_goes_with_the_one_that_a_redirect_sets(
    name: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(wants_cookie("seen=yes"))
    fetch(f"{origin.url}/f", tmp_path / "f", headers={name: "a=b"})
    assert [request.headers["cookie"] for request in origin.requests] == ["a=b", "a=b; seen=yes"]


def test_a_cookie_that_the_server_sets_replaces_the_users(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(wants_cookie("session=new"))
    fetch(f"{origin.url}/f", tmp_path / "f", headers={"Cookie": "session=old; a=b"})
    assert [request.headers["cookie"] for request in origin.requests] == ["session=old; a=b", "a=b; session=new"]


def test_the_users_cookie_stays_with_its_origin_and_the_servers_goes_on(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    other = serve(File(DATA))
    origin = serve(with_cookie(f"{other.url}/f"))
    fetch(f"{origin.url}/f", tmp_path / "f", headers={"Cookie": "a=b"})
    assert [request.headers.get("cookie") for request in other.requests] == ["seen=yes"]  # one host, another port


def test_a_loop_stays_a_loop_when_no_cookie_ends_it(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(with_cookie("/f"))
    with pytest.raises(ProtocolBroken, match="redirected more than 10 times"):
        fetch(f"{origin.url}/f", tmp_path / "f", headers={"Cookie": "a=b"})
    assert len(origin.requests) == 11
