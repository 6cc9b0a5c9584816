"""What every HTTP request passes first: its id, the key, limits of its body, and headers that protect browsers."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Refused
from .metrics import Metrics
from .settings import LOOPBACK, Settings

_LOG = logging.getLogger("unmask.server")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET = ("/health", "/ready", "/metrics")  # asked all the time: not in the log
_CLOSED = ("/v1/", "/metrics")  # what begins so needs the key; the page, the schema and the probes do not
_COUNTED = frozenset(  # by name; there are as many others as clients think of
    ("/v1/completions", "/v1/chat/completions", "/v1/infill", "/v1/models", "/v1/policies", "/v1/caches", *_QUIET, "/")
)
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware around the application.

    Args:
        app: the application.
        settings: limits and keys.
        metrics: what is counted.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.keys = [sha256(key.encode()).digest() for key in settings.keys]
        self.limit = int(settings.max_body * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        log = scope.setdefault("unmask.log", {})
        scope["unmask.id"] = request_id
        began, status, sent = time.perf_counter(), 0, 0

        async def marked(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {"x-request-id": request_id, **_HEADERS}
                if scope["path"].startswith("/v1/"):
                    own["cache-control"] = "no-store"
                known = {name for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in own.items() if k.encode() not in known]
                message = {**message, "headers": [*message["headers"], *more]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            self._host(headers)
            self._key(scope, headers)
            body = await self._body(scope, headers, receive)
            await self.app(scope, body, marked)
        except Refused as error:
            if not status:
                log["error"] = error.code
                await error.reply()(scope, receive, marked)
        except Exception as error:
            _LOG.exception("request %s failed", request_id)
            log["error"] = type(error).__name__
            if status:  # too late for another reply: the connection is closed
                raise
            await Refused(500, f"{type(error).__name__} in the server", "internal_error").reply()(
                scope, receive, marked
            )
        finally:
            self._note(scope, request_id, status, time.perf_counter() - began, sent)

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float, sent: int) -> None:
        """Log the request and count it."""
        path = scope["path"] if scope["path"] in _COUNTED else "other"
        self.metrics.http.labels(path, str(status)).inc()
        level = logging.DEBUG if path in _QUIET else logging.INFO
        own = {"request": request_id, "method": scope["method"], "path": scope["path"][:200], "status": status,
               "seconds": round(seconds, 4), "bytes": sent, **scope["unmask.log"]}  # fmt: skip
        _LOG.log(level, "request", extra={"fields": own})

    def _host(self, headers: dict[bytes, bytes]) -> None:
        """Refuse names that another site has pointed at this machine, where no key protects the server."""
        if self.keys or self.settings.exposed:
            return
        name = headers.get(b"host", b"localhost").decode("latin-1")
        bare = name.rpartition("]")[0][1:] if name.startswith("[") else name.partition(":")[0]
        if bare not in LOOPBACK:
            raise Refused(403, f"the host {name!r:.80} is not this server's; call it by 127.0.0.1", "host_not_allowed")

    def _key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if not self.keys or scope["method"] == "OPTIONS" or not scope["path"].startswith(_CLOSED):
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        digest = sha256(key.strip()).digest()
        fits = [hmac.compare_digest(digest, one) for one in self.keys]  # all are looked at, each in constant time
        if scheme.lower() != b"bearer" or not any(fits):
            message = "the API key is missing or not known; send it as Authorization: Bearer KEY"
            raise Refused(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read the body, which must be short and not slow; the application gets it in one piece.

        Raises:
            Refused: it is too long, or has not arrived in time.
        """
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        too_long = Refused(
            413,
            f"the body has more than {self.settings.max_body:g} MiB",
            "body_too_large",
            headers={"connection": "close"},
        )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 15 or int(length) > self.limit):
            raise too_long
        parts: list[bytes] = []
        size, more = 0, True
        deadline = time.perf_counter() + self.settings.stall
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.001, deadline - time.perf_counter()))
            except asyncio.TimeoutError:
                raise Refused(408, f"the body has not arrived within {self.settings.stall:g} seconds", "timeout",
                              headers={"connection": "close"}) from None  # fmt: skip
            if message["type"] == "http.disconnect":
                raise Refused(499, "the client has closed the connection", "client_closed_request")
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.limit:
                raise too_long
        return _replayed(b"".join(parts), receive)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that begins with a body that has been read."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def origins(settings: Settings) -> Sequence[str]:
    """The origins of web pages that may call the server, beside its own."""
    return [one.strip() for one in (settings.allow_origin or "").split(",") if one.strip()]
