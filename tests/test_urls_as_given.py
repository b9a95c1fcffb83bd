"""URLs and redirect targets reach the server byte for byte, directly and through a proxy."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.errors import PolicyRefused, UsageError
from dlpool.transfer.http.urls import resolve_location, split_credentials
from tests.conftest import Authority, Fetcher
from tests.handlers import Serve
from tests.origin import Connection, File, Request

DATA = b"some bytes"

# What follows the host in the URL, and in the request line.
AS_GIVEN = [
    "/a%2fb",
    "/a%2Fb",
    "/%7Euser/~user",
    "/%2e%2e/x",
    "/%2e/x",
    "/a[1]{2}",
    "/a|b^c`d",
    "/\"quoted\"'single'",
    "/<tag>",
    "/100%",
    "/%zz/%4",
    "/a%",
    "/%c3%a9",
    "//double//slash",
    "/./a/./b",
    "/a/../b",
    "/a/..",
    "/;x=1;y",
    "/a;b",
    "/f?",
    "/f??",
    "/f?a=1&b=%2F%2f&c=[x]",
    "/f?sig=a+b%2Bc/d==",
    '/f?q={}|\\^`"',
    "/f?/../x",
    "/f?a;b",
    "/back\\slash",
    "/a:b@c",
    "/a,b!$&'()*+",
    "/?x",
    "/",
    "/%00",
]
ESCAPED = [
    ("/a b", "/a%20b"),
    ("/tab\there", "/tab%09here"),
    ("/é", "/%C3%A9"),
    ("/日?語=ü", "/%E6%97%A5?%E8%AA%9E=%C3%BC"),
    ("/a%20b c", "/a%20b%20c"),
    ("/\udce9", "/%E9"),
    ("/x\x7f", "/x%7F"),
    ("?q=1", "/?q=1"),
    ("", "/"),
    ("#f", "/"),
    ("/f#part?x", "/f"),
    ("/f?x#part", "/f?x"),
    ("/f?#part", "/f?"),
    ("/a\r\nX: y", "/a%0D%0AX:%20y"),
]
SENT = [(path, path) for path in AS_GIVEN] + ESCAPED


@pytest.mark.parametrize(("given_path", "sent"), SENT)
def test_path_and_query_are_sent_as_given(
    given_path: str, sent: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA))
    fetch(f"{origin.url}{given_path}", tmp_path / "f")
    assert [request.path for request in origin.requests] == [sent]


@pytest.mark.parametrize(("given_path", "sent"), SENT)
def test_so_they_are_through_an_http_proxy(
    given_path: str, sent: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    proxy = serve(File(DATA))
    fetch(f"http://origin.test:8080{given_path}", tmp_path / "f", network={"proxy": proxy.url})
    (request,) = proxy.requests
    assert request.path == f"http://origin.test:8080{sent}"
    assert request.headers["host"] == "origin.test:8080"


def test_so_they_are_over_tls(serve: Serve, fetch: Fetcher, authority: Authority, tmp_path: Path) -> None:
    origin = serve(File(DATA), tls=authority.server_context())
    client = fetch.client(cacert=str(authority.ca_file))
    for given_path, _ in SENT:
        fetch(f"{origin.url}{given_path}", tmp_path / "f", client=client)
    assert [request.path for request in origin.requests] == [sent for _, sent in SENT]


LOCATIONS = [
    *((path, path) for path in AS_GIVEN if not path.startswith("//")),
    ("next", "/a/b/next"),
    ("./next", "/a/b/next"),
    ("../next", "/a/next"),
    ("../../../next", "/next"),
    ("..", "/a/"),
    (".", "/a/b/"),
    ("x/../y", "/a/b/y"),
    ("x/./y", "/a/b/x/y"),
    ("next?a=../..", "/a/b/next?a=../.."),
    ("%2e%2e/next", "/a/b/%2e%2e/next"),
    ("?other=%2f", "/a/b/c?other=%2f"),
    ("next#part", "/a/b/next"),
    ("a%2fb;c", "/a/b/a%2fb;c"),
    ("dir/", "/a/b/dir/"),
    ("next?", "/a/b/next?"),
    ("a//b", "/a/b/a//b"),
    ("/caf\xe9", "/caf%E9"),
    ("/caf\xc3\xa9", "/caf%C3%A9"),
    ("caf\xe9?\xfc", "/a/b/caf%E9?%FC"),
    ("/a b", "/a%20b"),
    ("/\xe9%c3%a9", "/%E9%c3%a9"),
]


@pytest.mark.parametrize(("location", "sent"), LOCATIONS)
def test_a_location_is_followed_as_the_server_gave_it(
    location: str, sent: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.number == 1:
            connection.answer(302, {"Location": location})
        else:
            File(DATA)(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/a/b/c?x=1", tmp_path / "f")
    assert [request.path for request in origin.requests] == ["/a/b/c?x=1", sent]


@pytest.mark.parametrize("path", AS_GIVEN)
@pytest.mark.parametrize("form", ["http://127.0.0.1:{port}{path}", "//127.0.0.1:{port}{path}"])
def test_a_complete_location_is_followed_as_given(
    form: str, path: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.number == 1:
            connection.answer(307, {"Location": form.format(port=origin.port, path=path)})
        else:
            File(DATA)(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/start", tmp_path / "f")
    assert origin.requests[1].path == path


@pytest.mark.parametrize("location", ["mailto:x", "file:/etc/passwd", "//", "http://", "//user@", "http://a\\@b/"])
def test_a_location_that_names_no_http_host_is_refused(
    location: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(lambda _request, connection: connection.answer(302, {"Location": location}))
    with pytest.raises(PolicyRefused):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert len(origin.requests) == 1


# RFC 3986 section 5.4, but that dot segments of what begins with "/" stay.
BASE = "http://a/b/c/d;p?q"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("g:h", "g:h"),
        ("g", "http://a/b/c/g"),
        ("./g", "http://a/b/c/g"),
        ("g/", "http://a/b/c/g/"),
        ("/g", "http://a/g"),
        ("//g", "http://g"),
        ("?y", "http://a/b/c/d;p?y"),
        ("g?y", "http://a/b/c/g?y"),
        ("", "http://a/b/c/d;p?q"),
        ("#s", "http://a/b/c/d;p?q"),
        ("g#s", "http://a/b/c/g"),
        ("g?y#s", "http://a/b/c/g?y"),
        (";x", "http://a/b/c/;x"),
        ("g;x", "http://a/b/c/g;x"),
        (".", "http://a/b/c/"),
        ("./", "http://a/b/c/"),
        ("..", "http://a/b/"),
        ("../", "http://a/b/"),
        ("../g", "http://a/b/g"),
        ("../..", "http://a/"),
        ("../../", "http://a/"),
        ("../../g", "http://a/g"),
        ("../../../g", "http://a/g"),
        ("/./g", "http://a/./g"),
        ("/../g", "http://a/../g"),
        ("g.", "http://a/b/c/g."),
        (".g", "http://a/b/c/.g"),
        ("..g", "http://a/b/c/..g"),
        ("./../g", "http://a/b/g"),
        ("./g/.", "http://a/b/c/g/"),
        ("g/./h", "http://a/b/c/g/h"),
        ("g/../h", "http://a/b/c/h"),
        ("g;x=1/./y", "http://a/b/c/g;x=1/y"),
        ("g;x=1/../y", "http://a/b/c/y"),
        ("g?y/./x", "http://a/b/c/g?y/./x"),
        ("g?y/../x", "http://a/b/c/g?y/../x"),
    ],
)
def test_a_relative_location_is_resolved(location: str, url: str) -> None:
    assert resolve_location(BASE, location) == url


def test_dot_segments_of_the_base_stay_unless_a_location_goes_above_them() -> None:
    assert resolve_location("http://a/x/./y/../z/f", "g") == "http://a/x/./y/../z/g"
    assert resolve_location("http://a/x/../f", "../g") == "http://a/g"


@pytest.mark.parametrize(
    ("url", "sent", "user"),
    [
        ("http://token@h/", "http://h/", ("token", "")),
        ("http://user:@h/f", "http://h/f", ("user", "")),
        ("http://:pw@h/f", "http://h/f", ("", "pw")),
        ("http://@h/f", "http://h/f", None),
        ("http://a%40b:c%3Ad%2f@h/f", "http://h/f", ("a@b", "c:d/")),
        ("http://user:p@ss@w:rd@h/f", "http://h/f", ("user", "p@ss@w:rd")),
        ("http://us%C3%A9r:pä@h:81/f", "http://h:81/f", ("usér", "pä")),
        ("http://%E9:x@h/f", "http://h/f", ("\udce9", "x")),
        ("http://u:100%@h/f", "http://h/f", ("u", "100%")),
        ("https://me@[::1]:8/f", "https://[::1]:8/f", ("me", "")),
        ("HTTP://me:PW@EXAMPLE.org/F", "http://example.org/F", ("me", "PW")),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC", None),
    ],
)
def test_user_info_leaves_the_url(url: str, sent: str, user: tuple[str, str] | None) -> None:
    assert split_credentials(url) == (sent, user)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///f",
        "http://:80/f",
        "http://h:port/f",
        "http://h:99999/f",
        "http://a\\@b/f",
        "http://a b/f",
        "http://a\tb/f",
        "ftp://h/f",
        "h/f",
        "//h/f",
        "http://[::1/f",
        "http://h/\ud800",
        "http://h\udce9/f",
    ],
)
def test_what_names_no_http_host_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        split_credentials(url)


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=30))
def test_any_path_becomes_one_that_a_request_line_can_have(text: str) -> None:
    sent, user = split_credentials(f"http://h/{text}")
    assert user is None
    assert all("!" <= character <= "~" for character in sent)
    assert split_credentials(sent) == (sent, None)
    assert urlsplit(sent).netloc == "h"
