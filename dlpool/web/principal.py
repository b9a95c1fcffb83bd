"""The authenticated client of a request, and its scopes. Pure."""

from __future__ import annotations

from dlpool.config.web import ADMIN, OPERATE, READ, SCOPES, UPLOAD, allows
from dlpool.dataclass import dataclass
from dlpool.web.errors import HttpError

REALM = 'Bearer realm="dlpool"'
# The scopes for each method of a resource: a client needs one of them.
READ_SCOPES: dict[str, tuple[str, ...]] = dict.fromkeys(("GET", "HEAD"), (READ,))
# UPLOAD suffices here, so that an upload client can resume its uploads.
RESUME_SCOPES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("GET", "HEAD"), (READ, UPLOAD)
)
UPLOAD_SCOPES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("POST", "PATCH", "DELETE"), (UPLOAD,)
)
OPERATE_SCOPES: dict[str, tuple[str, ...]] = dict.fromkeys(("GET", "HEAD"), (OPERATE,))


@dataclass(frozen=True)
class Principal:
    """The authenticated client of a request.

    ``actor`` identifies the client in audit events: ``token SUB``, ``key NAME``,
    ``secret`` or ``anonymous``. ``owner``: the owner whose uploads the client may use,
    None for all owners. ``user``: the name of the client in the log and for limits,
    None if the client has no name.
    """

    actor: str
    scopes: frozenset[str]
    owner: str | None = None
    user: str | None = None

    def has_scope(self, scope: str) -> bool:
        """Return whether the client has a scope; admin includes all scopes."""
        return allows(self.scopes, scope)

    def require(self, needed: tuple[str, ...]) -> None:
        """Raise HttpError (403) unless the client has one of the scopes (RFC 6750,
        section 3.1)."""
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


ANONYMOUS = Principal("anonymous", frozenset(SCOPES))  # if no key is required
# The client of a request before its key is checked, and of a request for an open
# resource.
UNAUTHENTICATED = Principal("anonymous", frozenset())
WITH_SECRET = Principal("secret", frozenset((ADMIN,)))


def unauthorized(text: str, *, is_token: bool = False) -> HttpError:
    """Return the error (401) for a request without a valid key; ``is_token``: the
    request has an invalid token.

    ``text`` is also used in a header: it must be ASCII without quotation marks and
    backslashes.
    """
    challenge = (
        f'{REALM}, error="invalid_token", error_description="{text}"'
        if is_token
        else REALM
    )
    return HttpError(401, "unauthorized", text, headers={"WWW-Authenticate": challenge})
