"""A server in this process, and one in a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import httpx2
import uvicorn

import unmask
import warm
from unmask.server import Settings, app, run

QUESTION = (
    "In the morning Uma counts 11 jars. Then the number of jars doubles. Then 7 jars are added. "
    "What is the number of jars now?"
)
ANSWER = "11*2=22\n22+7=29\nAnswer: 29"


@cache
def model() -> unmask.Model:
    """The bundled model in float32, in which a response is the same alone and in any batch."""
    return unmask.load(dtype="float32")


class Served:
    """A running server.

    Attributes:
        url: without a slash at its end.
        service: what stands between HTTP and the engine.
    """

    def __init__(self, settings: Settings, lm: unmask.Model) -> None:
        self.app = app(lm, settings)
        self.service = self.app.state.service
        self.listener = run.listen(settings)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app,
            http=run.guarded(settings.stall),
            ws="none",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=1,
            lifespan="on",
        )
        self.server = run.Server(config, self.service, settings)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)

    def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        """POST a JSON object."""
        head = {"content-type": "application/json", **more.pop("headers", {})}
        return httpx2.post(self.url + path, content=json.dumps(body).encode(), headers=head, timeout=60, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        """GET a path."""
        return httpx2.get(self.url + path, timeout=60, **more)

    def events(self, path: str, body: Any) -> list[Any]:
        """The objects of a stream, without the mark at its end, which must be there."""
        reply = self.post(path, {**body, "stream": True})
        assert reply.headers["content-type"].startswith("text/event-stream"), reply.text
        found = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
        assert found[-1] == "[DONE]" or "error" in json.loads(found[-1])
        return [json.loads(one) for one in found if one != "[DONE]"]

    def idle(self) -> bool:
        """Wait until nothing is decoded; whether that happened within some seconds."""
        return wait_for(lambda: self.service.open == 0 and not self.service.worker.busy)


def wait_for(happened: Any, seconds: float = 20.0) -> bool:
    """Whether something happens within some seconds."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def serving(lm: unmask.Model | None = None, **settings: Any) -> Iterator[Served]:
    """A server on a free port, until the end of the block."""
    served = Served(Settings(port=0, **settings), lm or model())
    served.thread.start()
    assert wait_for(lambda: served.server.started)
    try:
        yield served
    finally:
        served.server.should_exit = True
        served.thread.join(20)
        assert not served.thread.is_alive()


@contextmanager
def process(*arguments: str, port: int = 0, cold: bool = False) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``unmask serve`` in a process of its own, and its address; killed at the end of the block. ``cold``: a process
    that has to import it.
    """
    start = warm.COLD if cold else warm.command()
    command = [*start, "serve", "--port", str(port), "--dtype", "float32", *arguments]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": ""}
    ) as running:
        assert running.stderr is not None
        try:
            for line in running.stderr:
                if found := re.search(r"serving on (http://\S+?)[\s\"}]", line):
                    yield running, found[1]
                    break
            else:
                raise AssertionError(f"it ended with {running.wait()}")
        finally:
            running.kill()
            running.stderr.read()


def raw(port: int, data: bytes, seconds: float = 20.0, half: bool = False) -> bytes:
    """What a server sends until it closes a connection on which ``data`` was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        if half:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with suppress(ConnectionResetError):  # closed before it had read everything: what it sent is here
            while part := connection.recv(65536):
                found += part
        return found
