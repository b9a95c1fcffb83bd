"""What each token and key may do: scopes of all routes, named keys and their rotation, aud and iss, odd tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import falcon
import falcon.testing
import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dlpool.config import Settings, WebSettings
from dlpool.config.keysfile import parse_keys, read_keys
from dlpool.config.owned_paths import owned_paths
from dlpool.config.web import ADMIN, COMMON, OPERATE, PUSH, READ, SCOPES, UPLOAD
from dlpool.config.web_access import check_web_access
from dlpool.errors import ConfigurationError
from dlpool.web.app import make_app
from dlpool.web.auth import Authenticator
from dlpool.web.errors import HttpError
from dlpool.web.keyring import KeyRing
from dlpool.web.middleware import required_scopes
from dlpool.web.operations import BASE, OPERATIONS
from dlpool.web.tokens import MAX_TOKEN
from dlpool.web.wiring import WebServices
from tests.conftest import wait_until
from tests.fakes import Lines
from tests.processes import run
from tests.web import WebServer

KEY = "k" * 32
SECRET = "correct horse battery staple"
PREFIX = "/go-uploader"
OPEN = ("open", "probe")  # asked for without a token


def token(key: Any = KEY, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    return jwt.encode({"sub": "alice", "exp": time.time() + 3600, **claims}, key, algorithm, headers)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def settings_of(folder: Path, **web: Any) -> Settings:
    settings = Settings()
    return replace(
        settings,
        web=replace(settings.web, **{"request_rate": None, "secret_key": SECRET, "jwt_key": KEY, **web}),
        redis=replace(settings.redis, url="redis://127.0.0.1:1"),
        paths=replace(settings.paths, state_dir=str(folder / "state"), log_dir=str(folder / "log")),
        upload=replace(settings.upload, upload_dir=str(folder / "up"), merged_dir=str(folder / "merged")),
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> falcon.App[Any, Any]:
    return make_app(WebServices(settings_of(tmp_path_factory.mktemp("app"))))


@pytest.fixture(scope="module")
def client(app: falcon.App[Any, Any]) -> falcon.testing.TestClient:
    return falcon.testing.TestClient(app)


def routes(app: falcon.App[Any, Any]) -> Iterator[tuple[str, object]]:
    """Every address of the application with its resource, as the router knows them."""
    nodes = list(app._router._roots)
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.resource is not None:
            yield str(node.uri_template), node.resource


def methods(resource: object) -> list[str]:
    return [name[3:].upper() for name in dir(resource) if name.startswith("on_") and name != "on_options"]


# --- which route needs what ---


def test_every_route_declares_the_scope_of_each_method(app: falcon.App[Any, Any]) -> None:
    seen = set()
    for path, resource in routes(app):
        seen.add(path)
        if getattr(resource, "access", "token") in OPEN:
            continue
        declared: dict[str, tuple[str, ...]] = getattr(resource, "scopes", {})
        missing = set(methods(resource)) - declared.keys()
        assert not missing, f"{path} declares no scope for {missing}"
        assert all(needed and set(needed) <= set(SCOPES) for needed in declared.values()), path
    assert {f"{PREFIX}/upload_chunk", "/files", "/files/{file_id}", f"{BASE}/jobs", "/", f"{PREFIX}/system"} <= seen


def test_a_method_without_a_declared_scope_needs_admin() -> None:
    assert required_scopes(object(), "GET") == (ADMIN,)


TUS = {"Tus-Resumable": "1.0.0"}
ANY_OF = {  # by method and path: one of these scopes opens it
    ("POST", f"{PREFIX}/upload_chunk"): {UPLOAD},
    ("POST", f"{PREFIX}/merge_chunks"): {UPLOAD},
    ("GET", f"{PREFIX}/upload_status?file_id=x"): {READ, UPLOAD},
    ("GET", f"{PREFIX}/tasks"): {READ},
    ("GET", f"{PREFIX}/tasks/x"): {READ, UPLOAD},
    ("DELETE", f"{PREFIX}/tasks/x"): {UPLOAD},
    ("POST", f"{PREFIX}/tasks/x/pause"): {UPLOAD},
    ("POST", f"{PREFIX}/tasks/cleanup"): {UPLOAD},
    ("POST", f"{PREFIX}/tasks/batch"): {UPLOAD},
    ("GET", f"{PREFIX}/files/x"): {READ},
    ("HEAD", f"{PREFIX}/files/x"): {READ},
    ("GET", f"{PREFIX}/client"): {READ, UPLOAD},
    ("GET", f"{PREFIX}/system"): {OPERATE},
    ("GET", f"{PREFIX}/metrics"): {READ},
    ("POST", "/files"): {UPLOAD},
    ("HEAD", "/files/" + "0" * 32): {UPLOAD},
    ("PATCH", "/files/" + "0" * 32): {UPLOAD},
    ("DELETE", "/files/" + "0" * 32): {UPLOAD},
    ("GET", f"{BASE}/openapi.json"): {READ, UPLOAD, PUSH, OPERATE},
    ("GET", f"{BASE}/overview"): {READ},
    ("GET", f"{BASE}/jobs"): {READ},
    ("HEAD", f"{BASE}/jobs/x"): {READ},
    ("POST", f"{BASE}/jobs"): {PUSH},
    ("POST", f"{BASE}/jobs/batch"): {OPERATE},
    ("POST", f"{BASE}/jobs/x/cancel"): {OPERATE},
    ("PUT", f"{BASE}/jobs/x/priority"): {OPERATE},
    ("POST", f"{BASE}/nodes/x/drain"): {OPERATE},
    ("GET", f"{BASE}/queue"): {READ},
    ("POST", f"{BASE}/queue/pause"): {OPERATE},
    ("GET", f"{BASE}/failures"): {READ},
    ("POST", f"{BASE}/failures/x/remove"): {OPERATE},
}


@pytest.mark.parametrize("scope", [*SCOPES, ""])
def test_each_scope_opens_its_routes_and_no_others(scope: str, client: falcon.testing.TestClient) -> None:
    headers = {**bearer(token(scope=scope)), **TUS, "X-Forwarded-For": "192.0.2.1"}
    for (method, path), wanted in ANY_OF.items():
        said = client.simulate_request(method, path, headers=headers)
        is_open = scope in wanted or scope == ADMIN
        if is_open:
            assert said.status_code not in (401, 403), (scope, method, path, said.text)
            continue
        assert said.status_code == 403, (scope, method, path, said.status)
        challenge = said.headers["WWW-Authenticate"]
        assert challenge.startswith('Bearer realm="dlpool", error="insufficient_scope", scope="'), challenge
        assert set(challenge.rpartition('scope="')[2].rstrip('"').split()) == wanted
        if method != "HEAD":
            assert said.json["code"] == "insufficient_scope" and "this needs the scope" in said.json["error"]


def test_the_document_says_the_scopes_of_each_operation(client: falcon.testing.TestClient) -> None:
    """And with each of them the operation is not refused for want of a scope, with none of the others it is granted."""
    made = client.simulate_get(f"{BASE}/openapi.json", headers={"X-Secret-Key": SECRET}).json
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            needed = {scope for one in operation["security"] for scopes in one.values() for scope in scopes}
            if not needed:
                assert client.simulate_request(method.upper(), path).status_code in (200, 503), (method, path)
                continue
            assert operation["description"] == f"Needs the scope {' or '.join(s for s in SCOPES if s in needed)}."
            place = re.sub("{[^}]+}", "0" * 32, path)
            for scope in COMMON:
                headers = {**bearer(token(scope=scope)), **TUS, "X-Forwarded-For": "192.0.2.1"}
                if operation["operationId"] == "tusOverride":
                    headers["X-HTTP-Method-Override"] = "PATCH"
                said = client.simulate_request(method.upper(), place, headers=headers)
                assert (said.status_code == 403) == (scope not in needed), (method, path, scope, said.text)


def test_each_operation_of_the_job_api_needs_one_scope() -> None:
    for one in OPERATIONS:
        wanted = READ if one.method == "GET" else PUSH if one.name == "push" else OPERATE
        assert one.scope == wanted, one.name


def test_a_method_override_of_tus_needs_what_the_method_needs(client: falcon.testing.TestClient) -> None:
    for verb in ("PATCH", "DELETE"):
        headers = {**bearer(token(scope="read push operate")), **TUS, "X-HTTP-Method-Override": verb}
        said = client.simulate_post("/files/" + "0" * 32, headers=headers)
        assert (said.status_code, said.json["code"]) == (403, "insufficient_scope"), verb


def test_what_needs_no_token_needs_no_scope(client: falcon.testing.TestClient) -> None:
    for headers in ({}, bearer(token(scope="")), bearer("rubbish")):
        assert client.simulate_get("/", headers=headers).status_code == 200
        assert client.simulate_get(f"{PREFIX}/health", headers=headers).status_code in (200, 503)
        assert client.simulate_options("/files", headers=headers).status_code == 200
    assert client.simulate_get(f"{PREFIX}/nothing", headers=bearer(token(scope=""))).status_code == 404
    assert client.simulate_patch(f"{PREFIX}/tasks", headers=bearer(token(scope="read"))).status_code == 405


def test_a_refusal_for_want_of_a_scope_comes_before_the_body_is_read(client: falcon.testing.TestClient) -> None:
    for path in (f"{PREFIX}/upload_chunk", f"{BASE}/jobs"):
        said = client.simulate_post(
            path, headers=bearer(token(scope="read")), body=b"{" * 100_000, content_type="application/json"
        )
        assert said.status_code == 403


# --- scopes of tokens ---


def caller(text: str, **web: Any) -> Any:
    return Authenticator(WebSettings(**{"jwt_key": KEY, **web})).authenticate(f"Bearer {text}", None)


@pytest.mark.parametrize(
    ("claims", "wanted"),
    [
        ({}, COMMON),
        ({"scope": "read"}, {READ}),
        ({"scope": "openid read  profile upload"}, {READ, UPLOAD}),
        ({"scope": ["push", "email"]}, {PUSH}),
        ({"scope": "openid profile"}, ()),
        ({"scope": ""}, ()),
        ({"scope": []}, ()),
        ({"scope": "READ"}, ()),
        ({"scope": "read,upload"}, ()),
        ({"scope": "admin"}, {ADMIN}),
    ],
)
def test_scopes_are_those_of_the_claim_that_are_known(claims: dict[str, Any], wanted: Any) -> None:
    assert caller(token(**claims)).scopes == frozenset(wanted)


@pytest.mark.parametrize("odd", [7, None, True, {"read": 1}, ["read", 7], [["read"]]])
def test_a_scope_claim_of_another_type_is_no_token(odd: Any) -> None:
    with pytest.raises(HttpError, match="scopes must be a text"):
        caller(token(scope=odd))


def test_claims_and_defaults_are_settings() -> None:
    web = {"jwt_scope_claim": "scp", "jwt_owner_claim": "https://x.example/tenant", "jwt_default_scopes": "read"}
    tenant: Any = {"https://x.example/tenant": "acme"}
    found = caller(token(scp=["upload"], scope="admin", **tenant), **web)
    assert (found.scopes, found.owner, found.actor) == (frozenset({UPLOAD}), "acme", "token alice")
    assert caller(token(**tenant), **web).scopes == {READ}
    assert caller(token(), jwt_default_scopes="").scopes == frozenset()
    with pytest.raises(HttpError, match="owner claim is not a valid name"):
        caller(token(), **web)


def test_admin_sees_the_uploads_of_all_and_others_their_own() -> None:
    assert caller(token(scope="admin")).owner is None
    assert caller(token(scope="admin")).user == "alice"
    assert caller(token(scope="read")).owner == "alice"


# --- aud and iss ---


@pytest.mark.parametrize(
    ("web", "claims", "is_good"),
    [
        ({"jwt_audience": "dlpool,other"}, {"aud": "dlpool"}, True),
        ({"jwt_audience": "dlpool,other"}, {"aud": ["x", "other"]}, True),
        ({"jwt_audience": "dlpool"}, {"aud": ["x"]}, False),
        ({"jwt_audience": "dlpool"}, {"aud": "dlpool2"}, False),
        ({"jwt_audience": "dlpool"}, {"aud": 7}, False),
        ({"jwt_audience": "dlpool"}, {"aud": [["dlpool"]]}, False),
        ({"jwt_audience": "dlpool"}, {}, False),
        ({}, {"aud": "anything", "iss": "anybody"}, True),
        ({"jwt_issuer": "https://a.example,https://b.example"}, {"iss": "https://b.example"}, True),
        ({"jwt_issuer": "https://a.example"}, {"iss": "https://a.example/"}, False),
        ({"jwt_issuer": "https://a.example"}, {"iss": ["https://a.example"]}, False),
        ({"jwt_issuer": "https://a.example"}, {}, False),
    ],
)
def test_aud_and_iss_are_checked_where_they_are_configured(
    web: dict[str, str], claims: dict[str, Any], is_good: bool
) -> None:
    text = signed(HEAD, json.dumps({"sub": "alice", "exp": SOON, **claims}).encode())
    if is_good:
        assert caller(text, **web).owner == "alice"
        return
    with pytest.raises(HttpError) as caught:
        caller(text, **web)
    assert caught.value.status == 401 and 'error="invalid_token"' in caught.value.headers["WWW-Authenticate"]


# --- odd tokens ---


def signed(header: bytes, payload: bytes, key: bytes = KEY.encode()) -> str:
    """A token of any header and payload, with a good signature of HS256."""
    head = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, payload))
    mac = hmac.new(key, head, hashlib.sha256).digest()
    return (head + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


HEAD = b'{"alg":"HS256"}'
SOON = 4_102_444_800  # in 2100


def with_exp(text: str) -> str:
    return signed(HEAD, f'{{"sub":"alice","exp":{text}}}'.encode())


ODD = {
    **{
        f"exp {text[:12]}": with_exp(text)
        for text in (
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "1" + "0" * 400,
            "9" * 5000,
            "true",
            "null",
            '"tomorrow"',
            "[1]",
            "{}",
            f'"{SOON}"',
            "-1",
            "1e300",
            "-0.0",
            "0",
        )
    },
    "nbf odd": token(nbf="x"),
    "iat odd": token(iat=[1]),
    "iat late": token(iat=SOON),
    "nbf NaN": token(nbf=float("nan")),
    "deep payload": signed(HEAD, b'{"sub":"a","exp":%d,"x":%s1%s}' % (SOON, b"[" * 2000, b"]" * 2000)),
    "deep header": signed(b'{"alg":"HS256","x":%s1%s}' % (b"[" * 2000, b"]" * 2000), b"{}"),
    "unclosed header": signed(b'{"a":' * 1000, b"{}"),
    "many values": signed(HEAD, b'{"sub":"a","exp":%d,"x":[%s]}' % (SOON, b",".join([b"1"] * 2000))),
    "long": token(x="y" * 9000),
    "crit": signed(b'{"alg":"HS256","crit":["b64"],"b64":false}', b'{"sub":"alice","exp":%d}' % SOON),
    "unknown crit": signed(b'{"alg":"HS256","crit":["x"],"x":1}', b'{"sub":"alice","exp":%d}' % SOON),
    "header array": signed(b'["HS256"]', b"{}"),
    "payload array": signed(HEAD, b"[]"),
    "payload text": signed(HEAD, b'"x"'),
    "payload no JSON": signed(HEAD, b"\xff\x00"),
    "alg number": signed(b'{"alg":5}', b"{}"),
    "alg null": signed(b'{"alg":null}', b"{}"),
    "kid number": signed(b'{"alg":"HS256","kid":1}', b'{"sub":"a"}'),
    "kid long": signed(b'{"alg":"HS256","kid":"%s"}' % (b"k" * 999), b'{"sub":"a"}'),
    "two parts": "a.b",
    "four parts": "a.b.c.d",
    "padding": token() + "==",
    "spaces": token().replace(".", ". "),
    "surrogate": signed(HEAD, b'{"sub":"\\ud800","exp":%d}' % SOON),
    "long sub": token(sub="s" * 256),
    "not ASCII": "\u00e9.\u00e9.\u00e9",
    "nothing": "",
}


@pytest.mark.parametrize("why", ODD)
def test_an_odd_token_is_401_and_never_500(why: str, client: falcon.testing.TestClient) -> None:
    if why.startswith("exp 1e300"):
        assert len(ODD[why]) < MAX_TOKEN
    said = client.simulate_get(f"{PREFIX}/tasks", headers=bearer(ODD[why]))
    assert (said.status_code, said.json["code"]) == (401, "unauthorized"), (why, said.text)
    challenge = said.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="dlpool"') and challenge.isascii() and challenge.count('"') % 2 == 0
    assert 'error="invalid_token"' in challenge or why == "nothing"


def test_a_request_without_a_token_is_told_of_no_error(client: falcon.testing.TestClient) -> None:
    """RFC 6750, section 3.1."""
    said = client.simulate_get(f"{PREFIX}/tasks")
    assert (said.status_code, said.headers["WWW-Authenticate"]) == (401, 'Bearer realm="dlpool"')


# --- keys of other kinds ---


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def test_a_static_public_key_is_for_its_own_algorithms_only() -> None:
    curve, other, rsa_key = (
        ec.SECP256R1(),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    )
    key = ec.generate_private_key(curve)
    for text, algorithm, good in (
        (pem(key), "ES256", key),
        (pem(other), "ES384", other),
        (pem(rsa_key), "RS256", rsa_key),
    ):
        web = {"jwt_key": text, "jwt_algorithms": algorithm}
        assert caller(token(good, algorithm), **web).owner == "alice"
        forged = [
            token(),
            token(ec.generate_private_key(curve), "ES256"),
            token(KEY * 2, "HS512"),
            signed(HEAD, b'{"sub":"m","exp":%d}' % SOON, text.encode()),
            signed(b'{"alg":"%s"}' % algorithm.encode(), b'{"sub":"m","exp":%d}' % SOON, text.encode()),
        ]
        for one in forged:
            with pytest.raises(HttpError, match="invalid token"):
                caller(one, **web)


@pytest.mark.parametrize(
    ("algorithms", "make"),
    [
        ("RS256", lambda: ec.generate_private_key(ec.SECP256R1())),
        ("ES256", lambda: rsa.generate_private_key(65537, 2048)),
        ("ES256", lambda: ec.generate_private_key(ec.SECP384R1())),
        ("ES384", lambda: ec.generate_private_key(ec.SECP521R1())),
    ],
)
def test_a_key_that_does_not_fit_the_algorithms_is_refused(algorithms: str, make: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"for .S..."):
        Authenticator(WebSettings(jwt_key=pem(make()), jwt_algorithms=algorithms))


# --- named keys ---


def line(name: str, secret: str, scopes: str = "read", **more: str) -> str:
    return json.dumps(
        {"name": name, "scopes": scopes.split(), "sha256": hashlib.sha256(secret.encode()).hexdigest(), **more}
    )


def rewrite(path: Path, *lines: str) -> None:
    path.write_text("# keys\n\n" + "\n".join(lines) + "\n")
    path.chmod(0o600)


def test_named_keys_have_their_own_scopes_and_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    plain = json.dumps({"name": "plain", "scopes": "read, upload", "secret": "p" * 16})
    rewrite(
        path,
        line("reader", "secret of reader"),
        line("root", "secret of root", "admin"),
        line("old", "secret one", "upload read", owner="backup"),
        line("new", "secret two", "upload", owner="backup"),
        plain,
    )
    keys = Authenticator(WebSettings(keys_file=str(path), secret_key=SECRET))
    found = {
        secret: keys.authenticate(None, secret)
        for secret in ("secret of reader", "secret of root", "secret one", "secret two", "p" * 16, SECRET)
    }
    assert [(one.actor, one.owner, sorted(one.scopes)) for one in found.values()] == [
        ("key reader", "reader", ["read"]),
        ("key root", None, ["admin"]),
        ("key old", "backup", ["read", "upload"]),
        ("key new", "backup", ["upload"]),
        ("key plain", "plain", ["read", "upload"]),
        ("secret", None, ["admin"]),
    ]
    for wrong in ("", "secret thre", "secret one ", "\u00fc", hashlib.sha256(b"secret one").hexdigest()):
        with pytest.raises(HttpError) as caught:
            keys.authenticate(None, wrong)
        assert caught.value.status == 401
    with pytest.raises(HttpError, match="a key is needed: X-Secret-Key"):
        keys.authenticate(f"Bearer {token()}", None)


GOOD = line("a", "secret of a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"name": "a"}', "scopes is not a list"),
        (GOOD.replace('"read"', '"write"'), "scopes is not a list"),
        (GOOD.replace('["read"]', "[]"), "scopes is not a list"),
        (GOOD.replace('["read"]', '[["read"]]'), "scopes is not"),
        (GOOD.replace('"a"', '"a b"'), "name is not"),
        (GOOD.replace('"a"', "7"), "name is not"),
        (line("a", "x", owner=""), "owner is not"),
        (line("a", "x", owner="a\tb"), "owner is not"),
        (line("a", "x", "admin", owner="b"), "admin has no owner"),
        (GOOD.replace("sha256", "sha1"), "another member"),
        (line("a", "x")[:-1] + ', "secret": "ssssssssssssssssssss"}', "either secret or sha256"),
        ('{"name":"a","scopes":["read"]}', "either secret"),
        ('{"name":"a","scopes":["read"],"sha256":"xyz"}', "64 hex digits"),
        ('{"name":"a","scopes":["read"],"secret":"hush"}', "fewer than 16"),
        ('{"name":"a","scopes":["read"],"secret":"hush hush hush hush"}', "printable ASCII"),
        (GOOD + "\n" + line("a", "secret of b"), "another key has that name"),
        (GOOD + "\n" + line("b", "secret of a"), "another key has that secret"),
    ],
)
def test_a_line_that_is_no_key_keeps_it_from_starting_and_is_not_quoted(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    rewrite(path, text)
    with pytest.raises(ConfigurationError) as caught:
        check_web_access(WebSettings(keys_file=str(path)))
    number = 3 + text.count("\n")
    assert str(caught.value).startswith(f"[web] keys_file = {path}:{number}: ") and said in str(caught.value)
    assert "hush" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        Authenticator(WebSettings(keys_file=str(path)))


def test_a_file_of_keys_is_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = json.dumps({"name": "a", "scopes": ["read"], "secret": "s" * 20})
    for text, mode, said in (
        (GOOD, 0o644, ""),
        (GOOD, 0o646, "chmod o-w"),
        (secret, 0o640, ""),
        (secret, 0o644, "chmod o-r"),
    ):
        rewrite(path, text)
        path.chmod(mode)
        if not said:
            assert len(read_keys(str(path)).keys) == 1
            continue
        with pytest.raises(ConfigurationError, match=said):
            read_keys(str(path))
    for odd in (tmp_path, tmp_path / "nowhere", Path("/dev/null")):
        with pytest.raises(ConfigurationError, match=str(odd)):
            read_keys(str(odd))
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_keys(str(path))


def test_the_file_of_keys_is_what_dlpool_owns(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, keys_file=str(tmp_path / "keys"))
    assert str(tmp_path / "keys") in [one.path for one in owned_paths(settings)]
    assert parse_keys("").keys == ()


def test_a_changed_file_of_keys_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is no key is left out, a file that cannot be read holds none; both are told once."""
    monkeypatch.setattr("dlpool.web.keyring.CHECK_S", 0.0)
    told: list[str] = []
    path = tmp_path / "keys"
    rewrite(path, line("a", "secret a"))
    ring = KeyRing(str(path), told.append)

    def names() -> list[str]:
        found = [ring.find(f"secret {name}".encode()) for name in "abc"]
        return [one.name for one in found if one is not None]

    assert names() == ["a"]
    rewrite(path, line("a", "secret a"), line("b", "secret b"))
    assert names() == ["a", "b"]
    (tmp_path / "next").write_text(line("b", "secret b"))
    os.replace(tmp_path / "next", path)
    assert (names(), told) == (["b"], [])
    rewrite(path, "{broken", line("c", "secret c"))
    assert names() == ["c"] == names() and len(told) == 1 and f"{path}:3: it is not a JSON object" in told[0]
    path.unlink()
    assert names() == [] == names() and len(told) == 2
    rewrite(path, line("a", "secret a"))
    os.utime(path, (0, 0))
    assert names() == ["a"] and len(told) == 2


def test_the_upload_client_needs_the_scope_upload_alone(tmp_path: Path) -> None:
    keys, file = tmp_path / "keys", tmp_path / "data.bin"
    file.write_bytes(b"data" * 1000)
    rewrite(keys, line("sender", "the secret of sender", "upload"), line("reader", "the secret of reader"))
    with WebServer(tmp_path / "web", {"web": {"keys_file": keys, "processes": 1}}) as server:
        for name, code in (("reader", 6), ("sender", 0), ("sender", 0)):  # the second time it is there already
            (tmp_path / name).write_text(f"the secret of {name}")
            ended = run("upload", file, server.url, "--secret-key-file", tmp_path / name)
            assert ended.code == code, ended.err
            assert ("this needs the scope upload; key has read" in ended.err) == (name == "reader")
        assert (server.merged_dir / file.name).read_bytes() == file.read_bytes()


def test_an_attempt_without_the_scope_is_audited_with_the_name_of_the_key(tmp_path: Path) -> None:
    rewrite(tmp_path / "keys", line("reader", "the secret of reader"))
    settings = settings_of(tmp_path, keys_file=str(tmp_path / "keys"))
    parts, lines = WebServices(settings), Lines()
    parts.audit._log = lines
    client = falcon.testing.TestClient(make_app(parts))
    said = client.simulate_post(f"{BASE}/queue/pause", headers={"X-Secret-Key": "the secret of reader"})
    assert (said.status_code, said.json["code"]) == (403, "insufficient_scope")
    [audited] = lines.named("audit")
    wanted = {"action": "queue.pause", "actor": "key reader", "result": "refused", "label": "insufficient_scope"}
    assert wanted.items() <= audited.fields.items()


def test_rotation_and_reload_of_a_running_server(tmp_path: Path) -> None:
    """Two keys at once, then the first removed; a broken file and SIGHUP stop nothing; log and actor name the key."""
    path = tmp_path / "keys"
    rewrite(path, line("old", "the old secret", "read upload", owner="backup"))
    with WebServer(tmp_path, {"web": {"keys_file": path}}) as server:

        def status(secret: str, url: str = f"{PREFIX}/tasks") -> int:
            return requests.get(server.root + url, headers={"X-Secret-Key": secret}, timeout=10).status_code

        def become(old: int, new: int) -> None:
            wait_until(lambda: [status(one) for one in ("the old secret", "the new secret") * 4] == [old, new] * 4)

        become(200, 401)
        assert status("the old secret", f"{BASE}/openapi.json") == 200
        assert status("the old secret", f"{PREFIX}/system") == 403
        new = line("new", "the new secret", "read upload", owner="backup")
        rewrite(path, line("old", "the old secret", "read upload", owner="backup"), new)
        become(200, 200)
        rewrite(path, new)
        become(401, 200)
        assert server.process is not None
        rewrite(path, "{broken", new)
        workers = {worker.pid for worker in server.workers()}
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not workers & {worker.pid for worker in server.workers()})
        become(401, 200)
        assert any(str(path) in event["dlpool.reason"] for event in server.events("keys_refused"))
        assert {event.get("user.id") for event in server.events("request_served")} == {None, "backup"}
        assert "the new secret" not in server.log_file.read_text()


# --- who it is ---


def test_a_request_knows_its_actor_and_what_it_may(tmp_path: Path) -> None:
    class Echo:
        scopes: ClassVar = {"GET": SCOPES}

        def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
            caller = req.context.principal
            resp.media = [caller.actor, [one for one in SCOPES if caller.has_scope(one)]]

    class Open(Echo):
        access = "open"

    keys = tmp_path / "keys"
    rewrite(keys, line("reader", "secret of reader"))
    for web, cases in (
        (
            {"keys_file": str(keys)},
            [
                (bearer(token(scope="push")), ["token alice", [PUSH]]),
                (bearer(token(scope="admin")), ["token alice", list(SCOPES)]),
                ({"X-Secret-Key": "secret of reader"}, ["key reader", [READ]]),
                ({"X-Secret-Key": SECRET}, ["secret", list(SCOPES)]),
            ],
        ),
        ({"auth": "off"}, [({"Host": "localhost"}, ["anonymous", list(SCOPES)])]),
    ):
        app = make_app(WebServices(settings_of(tmp_path, **web)))
        app.add_route("/echo", Echo())
        app.add_route("/open", Open())
        client = falcon.testing.TestClient(app)
        for headers, wanted in cases:
            assert client.simulate_get("/echo", headers=headers).json == wanted
        assert client.simulate_get("/open", headers={"Host": "localhost"}).json == ["anonymous", []]
