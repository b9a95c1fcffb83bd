"""What is answered to a request that cannot be granted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UploadError(Exception):
    """A request that is refused: the status, a stable label, and a sentence for
    people.

    ``extra`` stands in the answer's JSON beside ``error`` and ``code``; ``headers`` go
    along with it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        text: str,
        *,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.headers = dict(headers or {})
        self.details = extra

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": self.text, "code": self.code, **self.details}
