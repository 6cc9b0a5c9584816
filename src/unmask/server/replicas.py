"""Several replicas of the application on a Ray cluster, behind one address.

The front is what clients see: it has the socket, the keys, the limits and the page. What needs a model it hands on to a
replica, which Ray Serve chooses by the requests that each has. A request whose replica dies before the first byte of
the reply goes to another one; a stream that has begun ends with an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from fastapi.staticfiles import StaticFiles
from prometheus_client import Counter, Gauge
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..core.errors import UnmaskError
from . import app as application
from .errors import Refused, Reply
from .guard import Guard
from .metrics import Metrics
from .reports import EVERY, KIND, Reports
from .run import Server, guarded
from .settings import Settings

if TYPE_CHECKING:
    from ..api import Model

_LOG = logging.getLogger("unmask.server")
_NAME = "unmask"
_TRIES = 8  # replicas that a request is sent to, before it is given up
_PAUSE = 0.25  # seconds before the second try; the n-th waits n times as long
_BEHIND = 256  # parts of a reply that a replica may be ahead of its client
_MARGIN = 30.0  # seconds beyond the time limit of requests after which the front gives up itself
_KEPT = ("type", "asgi", "http_version", "method", "path", "raw_path", "query_string", "scheme", "server", "client",
         "root_path")  # fmt: skip  # of a scope, what a replica needs


@dataclass(frozen=True)
class Replicas:
    """How many there are and what each takes of the cluster.

    Attributes:
        least, most: numbers; where they differ, Ray Serve chooses by the requests that wait or are being decoded.
        takes: ``num_cpus`` and ``num_gpus`` of each.
    """

    least: int
    most: int
    takes: Mapping[str, float]

    def options(self, settings: Settings) -> dict[str, Any]:
        """Of a deployment."""
        many: dict[str, Any] = {"num_replicas": self.least}
        if self.most > self.least:
            scale = {"min_replicas": self.least, "max_replicas": self.most}
            many = {"autoscaling_config": {**scale, "target_ongoing_requests": settings.batch_size}}
        return {
            **many,
            "ray_actor_options": dict(self.takes),
            "max_ongoing_requests": settings.batch_size + settings.max_queue,
            "max_queued_requests": max(1, settings.max_queue),
            "health_check_period_s": 2,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": settings.grace,
        }


class Replica:
    """One replica: the whole application, whose requests come from the front.

    Args:
        load: loads the model, in the process of the replica.
        settings: those of the front.
    """

    def __init__(self, load: Callable[[], Model], settings: Settings) -> None:
        self.app = application(load(), settings)
        self.running: AbstractAsyncContextManager[Any] | None = None
        self.starting = asyncio.Lock()
        self.name = secrets.token_hex(4)
        self.waiting: list[asyncio.Queue[Message | None]] = []  # what goes to the front, by request
        self.told = 0.0

    def report(self) -> Message:
        """What is counted here, as a message to the front."""
        self.told = time.monotonic()
        text = self.app.state.metrics.text().decode()
        return {"type": KIND, "replica": self.name, "busy": len(self.waiting) > 0, "text": text}

    async def reporting(self) -> None:
        """Report while there are requests, beside the reply to one of them."""
        while self.waiting:
            await asyncio.sleep(EVERY)
            free = next((one for one in self.waiting if not one.full()), None)
            if free is not None and time.monotonic() - self.told >= EVERY:
                free.put_nowait(self.report())

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose engine has ended.

        Raises:
            RuntimeError: it has.
        """
        if self.running and not self.app.state.service.worker.alive:
            raise RuntimeError("the engine has ended")

    async def serve(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """What the application sends to a request, message by message."""
        async with self.starting:
            if self.running is None:
                self.running = self.app.router.lifespan_context(self.app)
                await self.running.__aenter__()
        sent: asyncio.Queue[Message | None] = asyncio.Queue(_BEHIND)
        gone, given = asyncio.Event(), [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if given:
                return given.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if not gone.is_set():
                await sent.put(message)

        async def run() -> None:
            try:
                await self.app({**scope, "state": {}}, receive, send)
            finally:
                self.waiting.remove(sent)
                if not gone.is_set():
                    if not self.waiting or time.monotonic() - self.told >= EVERY:
                        await sent.put(self.report())
                    await sent.put(None)

        self.waiting.append(sent)
        if len(self.waiting) == 1:
            self.reports = asyncio.ensure_future(self.reporting())
        task = asyncio.ensure_future(run())
        try:
            while (message := await sent.get()) is not None:
                yield message
        finally:
            gone.set()
            while not sent.empty():
                sent.get_nowait()
            await asyncio.wait([task], timeout=_MARGIN)
            task.cancel()


class Front:
    """The application in front of the replicas.

    Args:
        handle: Ray Serve's handle of the deployment.
        settings: limits.
        metrics: what is counted here; the replicas have counters of their own.
    """

    def __init__(self, handle: Any, settings: Settings, metrics: Metrics) -> None:
        self.handle, self.settings, self.metrics = handle.options(stream=True), settings, metrics
        self.retries = Counter("unmask_retries", "Requests sent to another replica", registry=metrics.registry)
        Gauge("unmask_open", "Requests at the replicas", registry=metrics.registry).set_function(lambda: self.open)
        self.reports = Reports(metrics.registry)
        self.page = StaticFiles(directory=Path(__file__).parent / "static", html=True)
        self.open = 0
        self.draining = False
        self.worker = self  # the engines are elsewhere; what is to end here are the requests
        self.stopped = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether requests are still waited for."""
        return not self.stopped.is_set()

    lost = False

    def stop(self) -> None:
        """End what has not ended."""
        self.stopped.set()

    kill = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer here what needs no model; hand on the rest."""
        path = scope["path"]
        if path == "/health":
            return await Reply({"status": "ok"})(scope, receive, send)
        if path == "/ready":
            found = ({"status": "stopping"}, 503) if self.draining else ({"status": "ready"}, 200)
            return await Reply(*found)(scope, receive, send)
        if path == "/metrics":
            kind = "text/plain; version=0.0.4; charset=utf-8"
            return await Response(self.reports.text(), media_type=kind)(scope, receive, send)
        if not path.startswith("/v1/") and path != "/openapi.json":
            return await self.page(scope, receive, send)
        if self.draining:
            raise Refused(503, "the server is stopping", "unavailable", headers={"retry-after": "5"})
        self.open += 1
        try:
            await self._hand_on(scope, receive, send)
        finally:
            self.open -= 1

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a request to a replica, and to another one where that dies before it has begun to reply.

        Raises:
            Refused: no replica has answered.
        """
        body = b"" if scope["method"] in ("GET", "HEAD", "OPTIONS") else (await receive()).get("body", b"")
        plain = {name: scope[name] for name in _KEPT if name in scope}
        plain["headers"] = [(k, v) for k, v in scope["headers"] if k != b"x-request-id"]
        plain["headers"].append((b"x-request-id", scope["unmask.id"].encode()))
        deadline = time.monotonic() + self.settings.timeout + _MARGIN
        away = asyncio.ensure_future(_away(receive, self.stopped))
        reply = _Reply(send)
        try:
            for attempt in range(1, _TRIES + 1):
                lost = await self._once(plain, body, reply, away, deadline)
                if lost is None:
                    return
                _LOG.warning("a replica has been lost: %s", lost)
                if reply.begun:
                    await reply.broken("the replica that decoded it was lost; ask again", "replica_lost")
                    return
                self.retries.inc()
                await asyncio.sleep(_PAUSE * attempt)
            raise Refused(503, "no replica has answered", "unavailable", headers={"retry-after": "5"})
        finally:
            away.cancel()

    async def _once(
        self, scope: dict[str, Any], body: bytes, reply: _Reply, away: asyncio.Future[None], deadline: float
    ) -> str | None:
        """One try; what has happened to the replica, or None where the reply is complete or nobody waits for it."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        stream = self.handle.serve.remote(scope, body)
        messages = stream.__aiter__()
        try:
            while True:
                following = asyncio.ensure_future(messages.__anext__())
                left = max(0.0, deadline - time.monotonic())
                await asyncio.wait([following, away], timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    await _ended(following, stream)
                    if away.done():
                        if self.stopped.is_set():
                            await reply.broken("the server is stopping", "unavailable")
                        return None
                    raise Refused(504, f"no reply within {self.settings.timeout:g} seconds", "timeout")
                message = following.result()
                if message["type"] == KIND:
                    self.reports.take(message)
                else:
                    await reply.take(message)
        except StopAsyncIteration:
            return None if reply.begun else "it has sent nothing"
        except BackPressureError:
            self.metrics.rejected.inc()
            raise Refused(429, "all replicas have as much as they may", "rate_limit_exceeded",
                          headers={"retry-after": "2"}) from None  # fmt: skip
        except RayTaskError as error:
            if reply.begun:
                return str(error.cause or error).splitlines()[0]
            raise Refused(500, "the replica has failed", "internal_error") from error
        except (RayError, RayServeException) as error:
            return type(error).__name__


class _Reply:
    """A reply on its way. It has begun with the first byte of its body, a stream with the second event: the first one
    tells nothing but that there is a stream, and is held back, so that another replica can begin anew.
    """

    def __init__(self, send: Send) -> None:
        self.send = send
        self.held: list[Message] = []
        self.begun, self.streamed = False, False

    async def take(self, message: Message) -> None:
        """What the replica sends."""
        if message["type"] == "http.response.start":
            self.held = [message]
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.streamed = kind.startswith(b"text/event-stream")
            return
        self.held.append(message)
        if self.streamed and not self.begun and len(self.held) == 2 and message.get("more_body"):
            return
        self.begun = True
        ready, self.held = self.held, []
        for one in ready:
            await self.send(one)

    async def broken(self, why: str, code: str) -> None:
        """End a reply that will not be complete.

        Raises:
            ConnectionError: it is no stream of events, so that only the end of the connection can tell.
        """
        if not self.begun:
            raise Refused(503, why, code)
        if not self.streamed:
            raise ConnectionError(why)
        error = Refused(503, why, code).body()
        await self.send({"type": "http.response.body", "body": f"data: {json.dumps(error)}\r\n\r\n".encode()})


async def _ended(following: asyncio.Future[Any], stream: Any) -> None:
    """Tell a replica that nobody waits, whatever it makes of it."""
    stream.cancel()
    following.cancel()
    await asyncio.wait([following], timeout=1.0)
    if following.done() and not following.cancelled():
        following.exception()


async def _away(receive: Receive, stopped: asyncio.Event) -> None:
    """Wait until the client has gone, or nothing is waited for any more."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(gone()), asyncio.ensure_future(stopped.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def run(load: Callable[[], Model], settings: Settings, listener: socket.socket, replicas: Replicas) -> None:
    """Start the replicas on the cluster that this process is connected to, and serve until a signal ends it.

    Args:
        load: loads the model, in each replica.
        settings: limits, defaults and keys.
        listener: the socket, bound.
        replicas: how many, and where.

    Raises:
        UnmaskError: the replicas do not start.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # what becomes of a replica is in its log, and in Ray's
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
    deployment = serve.deployment(name=_NAME, **replicas.options(settings))(Replica)
    try:
        handle = serve.run(deployment.bind(load, settings), name=_NAME, route_prefix=None)
    except RuntimeError as error:
        raise UnmaskError(f"the replicas do not start: {str(error).strip().splitlines()[-1]}") from None
    try:
        metrics = Metrics()
        front = Front(handle, settings, metrics)
        config = uvicorn.Config(
            Guard(front, settings, metrics), http=guarded(settings.stall), ws="none", access_log=False, log_config=None,
            server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=2, lifespan="off",
        )  # fmt: skip
        host, port = listener.getsockname()[:2]
        listener.listen(config.backlog)
        _LOG.info("serving on http://%s:%d, replicas: %d to %d", host, port, replicas.least, replicas.most)
        Server(config, cast(Any, front), settings).run(sockets=[listener])
    finally:
        serve.shutdown()
    _LOG.info("stopped")
