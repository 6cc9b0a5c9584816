"""What is wrong with a request, in the shape of OpenAI's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        code: OpenAI's name of what is wrong.
        param: the parameter it is wrong with; None: with none in particular.
        headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The object that OpenAI's clients read."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def reply(self) -> Reply:
        """The HTTP response."""
        return Reply(self.body(), self.status, self.headers)


class Reply(JSONResponse):
    """JSON in ASCII, so that a text with half of a surrogate pair can be shown as well."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def wrong(message: str, param: str | None, code: str = "invalid_value") -> Refused:
    """A parameter with a value that is not accepted."""
    return Refused(400, message, code, param)
