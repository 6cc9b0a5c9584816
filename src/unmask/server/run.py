"""Run the application: the socket, signals, and clients that do not send or read."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..api import Model
from ..core.errors import UnmaskError
from .application import build
from .host import ending, hosted
from .service import Service
from .settings import Settings

_LOG = logging.getLogger("unmask.server")
_TICK = 0.1  # seconds between two looks at what is still running
_TELL = 5.0  # seconds in which clients are told that their responses have been ended
_HEAD = 2**16  # bytes that a request's head may have


def listen(settings: Settings) -> socket.socket:
    """The socket of a server, bound.

    Raises:
        UnmaskError: nobody may listen there without a key, or the address cannot be used.
    """
    if settings.exposed and not settings.keys and not settings.allow_anonymous:
        raise UnmaskError(
            f"--host {settings.host} can be reached by others, and there is no key; give --api-key, --api-key-file or "
            "UNMASK_API_KEY, or --allow-anonymous"
        )
    made: socket.socket | None = None
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        if made:
            made.close()
        why = error.strerror or error
        raise UnmaskError(f"cannot listen on {settings.host}, port {settings.port}: {why}") from None
    return made


def run(load: Callable[[], Model], settings: Settings, listener: socket.socket) -> None:
    """Serve until a signal ends it. The first SIGTERM or SIGINT lets what is running finish, the second stops it.

    Args:
        load: loads the model, in the process of the engine.
        settings: limits, defaults and keys.
        listener: the socket, bound.

    Raises:
        Exception: what ``load`` raises.
        SpecError, ModelError: the default policy or cache cannot be used.
        ChildProcessError: the engine has ended.
    """
    with hosted(load, settings, listener) as host:
        app = build(host, settings)
        config = uvicorn.Config(
            app, http=guarded(settings.stall), ws="none", access_log=False, log_config=None, server_header=False,
            timeout_keep_alive=75, timeout_graceful_shutdown=2, lifespan="on",
        )  # fmt: skip
        server = Server(config, app.state.service, settings)
        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        listener.listen(config.backlog)  # whoever reads the next line may connect
        _LOG.info("serving on http://%s:%d", shown, port)
        gc.freeze()  # what is there now stays: collections need not look at it
        server.run(sockets=[listener])
        if server.lost:
            raise ChildProcessError(f"the engine has {ending(host.runs)}")
    _LOG.info("stopped")


class Server(uvicorn.Server):
    """Uvicorn with another idea of signals."""

    def __init__(self, config: uvicorn.Config, service: Service, settings: Settings) -> None:
        super().__init__(config)
        self.service, self.settings = service, settings
        self._until = 0.0
        self._told: list[str] = []
        self.lost = False  # whether the engine has ended by itself

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second. The loop tells: a signal may come while a line is written."""
        name = signal.Signals(sig).name
        if self.service.draining:
            self.should_exit = self.force_exit = True
            self.service.worker.kill()
            self._told.append(f"{name}: stopping at once")
            return
        self.service.draining = True
        self._until = time.monotonic() + self.settings.grace
        self._told.append(f"{name}: {self.service.open} responses have {self.settings.grace:g} seconds to finish")

    async def main_loop(self) -> None:
        """Until it is told to end, and nothing is running or the time for it is over."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864000
            await asyncio.sleep(_TICK)
            self._tell()
            self.lost = self.service.worker.lost
            if (
                self.service.draining
                and self.service.open
                and self.service.worker.alive
                and time.monotonic() > self._until
            ):
                _LOG.warning("%d responses have not finished and are ended", self.service.open)
                self.service.worker.stop()
                self._until = time.monotonic() + _TELL
            self.should_exit = (
                self.should_exit
                or self.lost
                or (self.service.draining and (self.service.open == 0 or time.monotonic() > self._until))
            )

    def _tell(self) -> None:
        """Log what signals have begun."""
        while self._told:
            _LOG.info("%s", self._told.pop(0))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the engine first, so that no response is waited for, then the connections."""
        self._tell()
        self.service.worker.stop()
        if self.force_exit or self.service.open:  # nothing is waited for any more
            self.service.worker.kill()
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


def guarded(seconds: float) -> type[HttpToolsProtocol]:
    """The HTTP protocol of uvicorn that cuts off clients which do not send a request's head, or do not read a reply,
    for so many seconds, and those whose head does not end.
    """

    class _Guarded(HttpToolsProtocol):
        _late: asyncio.TimerHandle | None = None
        _stall: asyncio.TimerHandle | None = None
        _head: int | None = None  # bytes of a head that has begun in an earlier piece

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._late = self.loop.call_later(seconds, self._cut, "has not sent a request")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head = 0

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._head = None

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if self._head is not None:
                self._head += len(data)
            super().data_received(data)
            if self._head is not None and self._head > _HEAD:
                self._cut(f"has sent {self._head} bytes of a head that does not end")
            elif self.cycle is not before or (before is not None and not before.response_complete):
                self._late = _cancelled(self._late)
            elif self._late is None:  # the next request on a connection that is kept alive
                self._late = self.loop.call_later(seconds, self._cut, "has not sent a request")

        def pause_writing(self) -> None:
            self.flow.pause_writing()
            self._stall = self._stall or self.loop.call_later(seconds, self._cut, "does not read its reply")

        def resume_writing(self) -> None:
            self.flow.resume_writing()
            self._stall = _cancelled(self._stall)

        def connection_lost(self, exc: Exception | None) -> None:
            self._late, self._stall = _cancelled(self._late), _cancelled(self._stall)
            super().connection_lost(exc)

        def _cut(self, why: str) -> None:
            _LOG.info("a client is cut off, which %s (limit %g seconds, %d bytes)", why, seconds, _HEAD)
            self.transport.abort()

    return _Guarded


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, once a timer is cancelled."""
    if timer is not None:
        timer.cancel()
    return None
