"""Who makes a request, and what the request may do. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dlpool.config.scopes import ADMIN, OPERATE, READ, SCOPES, UPLOAD, allows
from dlpool.web.errors import HttpError

REALM = 'Bearer realm="dlpool"'
# What the methods of a resource need: one of these scopes.
READ_SCOPES: dict[str, tuple[str, ...]] = dict.fromkeys(("GET", "HEAD"), (READ,))
RESUME_SCOPES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("GET", "HEAD"), (READ, UPLOAD)
)  # what a client needs to resume
UPLOAD_SCOPES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("POST", "PATCH", "DELETE"), (UPLOAD,)
)
OPERATE_SCOPES: dict[str, tuple[str, ...]] = dict.fromkeys(("GET", "HEAD"), (OPERATE,))


@dataclass(frozen=True)
class Principal:
    """The client of a request.

    ``actor``: who it is, for the audit: ``token SUB``, ``key NAME``, ``secret``,
    ``anonymous``. ``owner``: whose uploads it sees, None: of all. ``user``: its name in
    the log and in shares between clients, None where only its address is known.
    """

    actor: str
    scopes: frozenset[str]
    owner: str | None = None
    user: str | None = None

    def has_scope(self, scope: str) -> bool:
        """Return whether it has the scope; admin includes all."""
        return allows(self.scopes, scope)

    def require(self, needed: tuple[str, ...]) -> None:
        """Raise Refusal (403) unless it has one of the scopes (RFC 6750, section
        3.1)."""
        if any(self.has_scope(scope) for scope in needed):
            return
        has = ", ".join(scope for scope in SCOPES if scope in self.scopes) or "none"
        text = (
            f"this needs the scope {' or '.join(needed)}; "
            f"{self.actor.partition(' ')[0]} "
            f"has {has}"
        )
        challenge = f'{REALM}, error="insufficient_scope", scope="{" ".join(needed)}"'
        raise HttpError(
            403, "insufficient_scope", text, headers={"WWW-Authenticate": challenge}
        )


ANONYMOUS = Principal("anonymous", frozenset(SCOPES))  # where no key is asked for
UNAUTHENTICATED = Principal(
    "anonymous", frozenset()
)  # until the key is checked, and at addresses that ask for none
WITH_SECRET = Principal("secret", frozenset((ADMIN,)))


def unauthorized(text: str, *, is_token: bool = False) -> HttpError:
    """Return the refusal (401) of a request without a valid key; ``is_token``: a token
    was sent, and is not valid.

    ``text`` becomes a part of a header: ASCII without quotation marks and backslashes.
    """
    challenge = (
        f'{REALM}, error="invalid_token", error_description="{text}"'
        if is_token
        else REALM
    )
    return HttpError(401, "unauthorized", text, headers={"WWW-Authenticate": challenge})
