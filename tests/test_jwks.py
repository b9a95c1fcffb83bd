"""Keys of tokens by URL: rotation, a provider that is away, slow or lying, and tokens that name keys of their own."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import falcon.testing
import pytest
import requests
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dlpool.config import Settings, WebSettings
from dlpool.config.web import JWKS_URL
from dlpool.web import jwks
from dlpool.web.app import make_app
from dlpool.web.auth import Authenticator
from dlpool.web.errors import HttpError
from dlpool.web.jwks import (
    MAX_AGE_S,
    MAX_STALE_S,
    MIN_AGE_S,
    MIN_INTERVAL_S,
    RETRY_S,
    JwksFailed,
    JwksSource,
    fetch,
    parse_max_age,
)
from dlpool.web.tokens import TokenVerifier
from dlpool.web.wiring import MAX_LOGGED, WebServices
from tests.conftest import wait_until
from tests.fakes import Lines
from tests.provider import Provider, answered, jwk, token
from tests.web import WebServer

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        provider.serve(jwk(EC))
        yield provider


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Site:
    """What checks tokens with a provider's keys, at a time of its own."""

    def __init__(self, provider: Provider) -> None:
        self.clock = Clock()
        self.told: list[tuple[str | None, int]] = []
        self.source = JwksSource(provider.url, lambda *args: self.told.append(args), clock=self.clock)
        self.check = TokenVerifier(WebSettings(jwt_audience="dlpool"), None, self.source)

    def status(self, text: str) -> int:
        """How a token is answered, once a fetch that has begun is over."""
        try:
            self.check.verify(text)
        except HttpError as refusal:
            return refusal.status
        finally:
            wait_until(lambda: self.source._fetching is None)
        return 200


@pytest.fixture
def site(provider: Provider) -> Site:
    return Site(provider)


def test_keys_of_both_kinds_are_found_by_their_ids(provider: Provider, site: Site) -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    provider.serve(jwk(RSA, "r", use="sig", alg="RS256"), jwk(EC, "e"), jwk(p384, "e384", key_ops=["verify"]))
    for key, algorithm, kid in ((RSA, "RS256", "r"), (EC, "ES256", "e"), (p384, "ES384", "e384")):
        assert site.status(token(key, algorithm, kid)) == 200
    wrong = [(RSA, "RS512", "r"), (RSA, "RS256", "e"), (EC, "ES256", "r"), (OTHER, "ES256", "e"), (EC, "ES256", None)]
    assert [site.status(token(*one)) for one in wrong] == [401] * len(wrong)
    assert (len(provider.heads), site.told) == (1, [(None, 3)])
    assert provider.heads[0].startswith(b"GET /keys?a=1 HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{provider.port}".encode() in provider.heads[0]


def test_two_keys_of_one_id_are_both_tried(provider: Provider, site: Site) -> None:
    provider.serve(jwk(EC), jwk(OTHER), jwk(RSA))
    assert [site.status(one) for one in (token(EC, "ES256"), token(OTHER, "ES256"), token(RSA, "RS256"))] == [200] * 3


def test_rotation(provider: Provider, site: Site) -> None:
    """An id that is not known has the set fetched again, but not at once after the last time."""
    assert site.status(token(EC, "ES256")) == 200
    provider.serve(jwk(EC), jwk(OTHER, "k2"))
    assert (site.status(token(OTHER, "ES256", "k2")), len(provider.heads)) == (401, 1)
    site.clock.now += MIN_INTERVAL_S
    assert (site.status(token(OTHER, "ES256", "k2")), len(provider.heads)) == (200, 2)
    provider.serve(jwk(OTHER, "k2"))
    site.clock.now += MAX_AGE_S
    site.status(token(EC, "ES256"))  # while it is fetched again what is known is valid
    assert (site.status(token(EC, "ES256")), site.status(token(OTHER, "ES256", "k2"))) == (401, 200)
    assert site.told == [(None, 1), (None, 2), (None, 1)]


def test_forged_ids_have_no_more_fetched(provider: Provider, site: Site) -> None:
    assert site.status(token(EC, "ES256")) == 200
    for _ in range(3):
        assert {site.status(token(OTHER, "ES256", f"forged {number}")) for number in range(20)} == {401}
        site.clock.now += MIN_INTERVAL_S
    assert len(provider.heads) == 3
    for algorithm in ("none", "HS256", "PS256"):  # what none of its keys could have signed asks for nothing
        site.status(forged({"alg": algorithm, "kid": "x"}, b"k" * 32))
    assert len(provider.heads) == 3


def test_keys_are_kept_as_long_as_the_provider_says(provider: Provider, site: Site) -> None:
    for headers, age_s in (("Cache-Control: public, max-age=900\r\n", 900), ("Cache-Control: no-store\r\n", MIN_AGE_S)):
        provider.serve(jwk(EC), headers=headers)
        site.clock.now += MAX_AGE_S
        site.status(token(EC, "ES256"))
        count = len(provider.heads)
        site.clock.now += age_s - 1
        assert (site.status(token(EC, "ES256")), len(provider.heads)) == (200, count)
        site.clock.now += 1
        assert (site.status(token(EC, "ES256")), len(provider.heads)) == (200, count + 1)


@pytest.mark.parametrize(
    ("header", "age_s"),
    [
        (None, 600),
        ("", 600),
        ("max-age=60", 60),
        ("max-age=1", 60),
        ("MAX-AGE = 90", 600),
        ('max-age="90"', 90),
        ("max-age=-5", 600),
        ("max-age=99999999999", 600),
        ("max-age=999999999", 86400),
        ("private,max-age=300", 300),
        ("no-cache, max-age=900", 60),
        ("x" * 100_000, 600),
        ("max-age=NaN", 600),
    ],
)
def test_ages_are_bounded(header: str | None, age_s: float) -> None:
    assert parse_max_age(header) == age_s


def test_while_the_provider_is_away_its_keys_stay_valid_for_a_day(provider: Provider, site: Site) -> None:
    assert site.status(token(EC, "ES256")) == 200
    provider.answer = answered(b"oops", "500 Internal Server Error")
    begun = site.clock.now
    for _ in range(5):
        site.clock.now += MAX_STALE_S / 6
        assert site.status(token(EC, "ES256")) == 200
        assert site.status(token(OTHER, "ES256", "k2")) == 503, "it may be a new key: that cannot be told"
    site.clock.now = begun + MAX_STALE_S
    assert site.status(token(EC, "ES256")) == 503
    assert site.told == [(None, 1), ("the response has status 500", 0)], "a failure is told once"
    provider.serve(jwk(EC))
    assert site.status(token(EC, "ES256")) == 503, "not at once"
    site.clock.now += RETRY_S
    assert site.status(token(EC, "ES256")) == 200


def test_a_provider_that_was_never_there_is_503_with_retry_after(provider: Provider, site: Site) -> None:
    provider.answer = b""
    with pytest.raises(HttpError) as caught:
        site.check.verify(token(EC, "ES256"))
    assert (caught.value.status, caught.value.code) == (503, "keys_unavailable")
    assert int(caught.value.headers["Retry-After"]) > 0


# --- a provider that answers oddly ---

DEEP = b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def body(*keys: Any) -> bytes:
    return answered(json.dumps({"keys": keys}).encode())


def drip(connection: Any) -> None:
    """A head that never ends."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        connection.sendall(f"X-{number}: x\r\n".encode())
        time.sleep(0.05)


def slow_body(connection: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b" ")
        time.sleep(0.05)


def endless(connection: Any) -> None:
    """A line that never ends."""
    for _ in range(10_000):
        connection.sendall(b"x" * 65536)


def ended_early(connection: Any) -> None:
    connection.sendall(body(jwk(EC))[:-20])


ODD: dict[str, bytes | Callable[[Any], None]] = {
    "nothing": b"",
    "no HTTP": b"hello\r\n\r\n",
    "no JSON": answered(b"{"),
    "no object": answered(b"[]"),
    "no keys": answered(b"{}"),
    "keys of another type": answered(b'{"keys":{"kid":"k1"}}'),
    "empty": body(),
    "deep": answered(DEEP),
    "large": answered(b" " * 300_000),
    "endless": endless,
    "large body": lambda one: one.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 10**7),
    "many": body(*[jwk(EC)] * 201),
    "many values": answered(b'{"keys":[' + b",".join([b"1"] * 20_000) + b"]}"),
    "redirect": answered(b"", "302 Found", "Location: http://127.0.0.1:1/\r\n"),
    "404": answered(b"", "404 Not Found"),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "compressed": answered(gzip.compress(b"{}"), headers="Content-Encoding: gzip\r\n"),
    "cut": ended_early,
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "drip": drip,
    "slow body": slow_body,
    "silent": lambda one: time.sleep(2),
    "no id": body(jwk(EC, None)),
    "id of another type": body(jwk(EC, kid=1)),  # type: ignore[arg-type]
    "secret": body({"kty": "oct", "k": "a2V5", "kid": "k1", "alg": "HS256"}),
    "short RSA": body(jwk(rsa.generate_private_key(65537, 1024))),
    "RSA of one": body({**jwk(RSA), "n": "AQ"}),
    "long RSA": body({**jwk(RSA), "n": "f" * 2000}),
    "even exponent": body({**jwk(RSA), "e": "AQAC"}),
    "exponent 1": body({**jwk(RSA), "e": "AQ"}),
    "long exponent": body({**jwk(RSA), "e": "f" * 300}),
    "n of another type": body({**jwk(RSA), "n": 17}),
    "n no base64": body({**jwk(RSA), "n": "a b"}),
    "off the curve": body({**jwk(EC), "x": "AAAA"}),
    "long point": body({**jwk(EC), "x": "f" * 2000}),
    "another curve": body({**jwk(EC), "crv": "secp256k1"}),
    "P-521": body(jwk(ec.generate_private_key(ec.SECP521R1()))),
    "no curve": body({"kty": "EC", "kid": "k1"}),
    "OKP": body({"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "k1"}),
    "for encryption": body(jwk(EC, use="enc")),
    "to sign": body(jwk(EC, key_ops=["sign"])),
    "key_ops text": body(jwk(EC, key_ops="verify")),
    "another algorithm": body(jwk(EC, alg="HS256")),
    "algorithm of RSA": body(jwk(EC, alg="RS256")),
    "algorithm of another type": body(jwk(EC, alg=["ES256"])),
}


@pytest.mark.parametrize("why", ODD)
def test_an_odd_answer_leaves_the_keys_as_they_are(
    why: str, provider: Provider, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.status(token(EC, "ES256")) == 200
    provider.answer = ODD[why]
    site.clock.now += MAX_AGE_S / 2
    with monkeypatch.context() as patch:
        patch.setattr(jwks, "TOTAL_TIMEOUT_S", 0.3)
        patch.setattr(jwks, "READ_TIMEOUT_S", 0.2)
        assert site.status(token(EC, "ES256")) == 200
        assert len(provider.heads) == 2
        wait_until(lambda: len(site.told) == 2)
    [first, (reason, count)] = site.told
    assert first == (None, 1) and count == 0 and reason and "\n" not in reason and "defect" not in reason
    odd: list[Any] = [{"kid": None}, 7, None, {}]
    provider.serve(jwk(OTHER, "k2"), *odd)  # what is no key does not spoil the others
    site.clock.now += RETRY_S
    assert site.status(token(OTHER, "ES256", "k2")) == 200


def test_a_slow_provider_holds_few_requests_and_not_for_long(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "WAIT_S", 0.5)
    gate = threading.Event()
    provider.answer = lambda connection: (gate.wait(10), connection.sendall(body(jwk(EC))))[1]
    site = Site(provider)
    waited: list[float] = []

    def ask(_: int) -> int:
        begun = time.monotonic()
        try:
            site.check.verify(token(EC, "ES256"))
        except HttpError as refusal:
            return refusal.status
        finally:
            waited.append(time.monotonic() - begun)
        return 200

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(ask, range(64))) == {503}
    assert len(provider.heads) == 1 and max(waited) < 5
    assert sum(seconds > 0.4 for seconds in waited) <= 2 * jwks.WAITERS
    gate.set()
    assert site.status(token(EC, "ES256")) in (200, 503)
    assert site.status(token(EC, "ES256")) == 200


# --- tokens that would choose their own key ---


def forged(header: dict[str, Any], secret: bytes) -> str:
    """A token of any header, signed with HMAC, which PyJWT does not make of a public key."""
    claims = {"sub": "mallory", "aud": "dlpool", "exp": int(time.time()) + 60}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    text = b".".join(parts)
    return (
        text + b"." + base64.urlsafe_b64encode(hmac.new(secret, text, hashlib.sha256).digest()).rstrip(b"=")
    ).decode()


def test_a_public_key_is_never_a_secret_and_no_token_says_where_its_key_is(provider: Provider, tmp_path: Path) -> None:
    spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    provider.serve(jwk(RSA), jwk(EC, "k2"))
    with Provider() as evil:
        evil.serve(jwk(OTHER))
        secret = "s" * 32
        keys = Authenticator(WebSettings(jwt_key=secret, jwks_url=provider.url, jwt_audience="dlpool"))

        def status(text: str) -> int:
            try:
                keys.authenticate(f"Bearer {text}", None)
            except HttpError as refusal:
                return refusal.status
            return 200

        good = (token(RSA, "RS256"), token(EC, "ES256", "k2"), token(secret, "HS256", None), token(secret, "HS256"))
        assert [status(one) for one in good] == [200] * 4
        public = [
            RSA.public_key().public_bytes(*spki),
            EC.public_key().public_bytes(*spki),
            json.dumps(jwk(RSA)).encode(),
            jwk(RSA)["n"].encode(),
            b"",
            b"k1",
        ]
        for one in public:
            for algorithm in ("HS256", "RS256", "ES256", "none"):
                assert status(forged({"alg": algorithm, "kid": "k1"}, one)) == 401
        for header in (
            {"jku": evil.url},
            {"x5u": evil.url},
            {"jwk": jwk(OTHER)},
            {"x5c": ["MII"]},
            {"jku": evil.url, "jwk": jwk(OTHER, None)},
        ):
            for kid in ("k1", "k2", "k3", None):
                assert status(token(OTHER, "ES256", kid, header)) == 401
        assert status(token(RSA, "RS256", aud="other")) == 401
        assert evil.heads == []


# --- the URL ---


@pytest.mark.parametrize(
    ("url", "is_good"),
    [
        ("https://id.example/keys", True),
        ("https://id.example:8443/a?b=c", True),
        ("http://127.0.0.1:8080/keys", True),
        ("http://[::1]/keys", True),
        ("http://localhost/keys", True),
        ("http://id.example/keys", False),
        ("http://localhost.example/keys", False),
        ("http://127.0.0.1.nip.io/", False),
        ("ftp://127.0.0.1/", False),
        ("https://u:p@id.example/", False),
        ("https://id.example/#x", False),
        ("https://id.example:0/", False),
        ("https://id.example:99999/", False),
        ("https://", False),
        ("https:///keys", False),
        ("https://[::1/", False),
        ("https://id.example/a b", False),
        ("file:///etc/passwd", False),
        ("", False),
        ("https://\u00e9.example/", False),
    ],
)
def test_the_url_is_https_or_of_this_machine(url: str, is_good: bool) -> None:
    if is_good:
        assert JWKS_URL.parse(url) == url
        return
    with pytest.raises(ValueError, match=r"^(not|http to)"):
        JWKS_URL.parse(url)


def test_over_tls_the_certificate_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for names, is_trusted, is_good in (
        (["127.0.0.1"], True, True),
        (["127.0.0.1"], False, False),
        (["id.example"], True, False),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(context)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem") if is_trusted else "/dev/null")
        with Provider(context) as provider:
            provider.serve(jwk(EC))
            if is_good:
                assert b'"kty"' in fetch(provider.url)[0]
                continue
            with pytest.raises(JwksFailed, match="cannot fetch the key set: "):
                fetch(provider.url)


def test_a_handshake_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "TOTAL_TIMEOUT_S", 0.2)
    with Provider() as provider:  # which never answers what is no HTTP
        begun = time.monotonic()
        with pytest.raises(JwksFailed):
            fetch(provider.url.replace("http:", "https:"))
        assert time.monotonic() - begun < 3


# --- the server ---


def test_tokens_that_cannot_be_checked_do_not_fill_the_log(provider: Provider, tmp_path: Path) -> None:
    provider.answer = answered(b"", "503 Service Unavailable")
    settings = Settings()
    parts = WebServices(
        replace(
            settings,
            web=replace(settings.web, jwks_url=provider.url, jwt_audience="dlpool", request_rate=None),
            paths=replace(settings.paths, state_dir=str(tmp_path / "state"), log_dir=str(tmp_path / "log")),
            upload=replace(settings.upload, upload_dir=str(tmp_path / "up"), merged_dir=str(tmp_path / "merged")),
        )
    )
    lines = Lines()
    parts.log = lines
    client = falcon.testing.TestClient(make_app(parts))
    for number in range(MAX_LOGGED + 30):
        headers = {"Authorization": f"Bearer {token(OTHER, 'ES256', f'forged {number}')}"}
        said = client.simulate_get("/go-uploader/tasks", headers=headers)
        assert (said.status_code, said.json["code"]) == (503, "keys_unavailable")
    assert len(lines.named("request_served")) == MAX_LOGGED
    assert len(lines.named("jwks_failed")) == 1


def test_a_server_with_a_key_set(provider: Provider, tmp_path: Path) -> None:
    """It starts without its provider, serves while that is away, and its log tells of both."""
    good = provider.answer
    provider.answer = answered(b"", "503 Service Unavailable")
    web = {"jwks_url": provider.url, "jwt_audience": "dlpool", "processes": 1}
    with WebServer(tmp_path, {"web": web}) as server:

        def status(text: str) -> int:
            headers = {"Authorization": f"Bearer {text}"}
            return requests.get(f"{server.url}/tasks", headers=headers, timeout=20).status_code

        assert status(token(EC, "ES256")) == 503
        wait_until(lambda: len(server.events("jwks_failed")) == 1)
        [failed] = server.events("jwks_failed")
        assert failed["dlpool.reason"] == "the response has status 503"
        provider.answer = good
        wait_until(lambda: status(token(EC, "ES256")) == 200, 20)
        assert status(token(EC, "ES256", aud="other")) == 401
        assert status(token(EC, "ES256", scope="push")) == 403
        wait_until(lambda: len(server.events("jwks_fetched")) == 1)
        [fetched] = server.events("jwks_fetched")
        assert fetched["dlpool.count"] == 1
