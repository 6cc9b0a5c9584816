"""A small HTTP client that takes little of the processors that the server needs, and can leave in the middle."""

import asyncio
import json
import re
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Reply:
    """What came of a request; ``left``: it was given up on purpose. Times are seconds from its start."""

    status: int = 0
    text: str = ""
    finish: str = ""
    first: float | None = None
    seconds: float = 0.0
    tokens: int = 0
    left: bool = False
    error: str = ""
    events: list = field(default_factory=list)


class Connections:
    """Open connections to a server; a request takes one that is free, as OpenAI's clients do, or makes one."""

    def __init__(self, port):
        self.port, self.free = port, []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for _, writer in self.free:
            await _closed(writer)

    async def ask(self, path, body, leave=None, key=None):
        """POST a JSON object. ``leave``: close the connection after so many seconds, if the reply is not complete."""
        reply, began, stays = Reply(), time.perf_counter(), False
        reader, writer = (
            self.free.pop() if self.free else await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        )
        try:
            data = json.dumps(body).encode()
            own = f"authorization: Bearer {key}\r\n" if key else ""
            writer.write(
                f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                f"{own}content-length: {len(data)}\r\n\r\n".encode()
                + data
            )
            try:
                stays = await asyncio.wait_for(_read(reader, reply, began), leave)
            except asyncio.TimeoutError:
                reply.left = True
            reply.seconds = time.perf_counter() - began
        finally:
            if stays:
                self.free.append((reader, writer))
            else:
                await _closed(writer)
        return reply


async def ask(port, path, body, leave=None, key=None):
    """The same on a connection of its own."""
    async with Connections(port) as connections:
        return await connections.ask(path, body, leave, key)


def metric(port, name):
    """The value of a metric of the server; of a process's, that of the server's and the engine's together."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    names = {name, f"unmask_engine_{name}"}
    values = [float(value) for found, _, value in (line.rpartition(" ") for line in lines) if found in names]
    if not values:
        raise SystemExit(f"the server has no metric {name}")
    return sum(values)


async def _closed(writer):
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def _read(reader, reply, began):
    """Read a reply; whether the connection stays open behind it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    reply.status = int(head.split()[1])
    stays = "connection: close" not in head
    if "text/event-stream" in head:
        async for line in _lines(reader):
            if line.startswith(b"data: {"):
                _event(json.loads(line[6:]), reply, began)
        return stays
    length = re.search(r"\ncontent-length: (\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b"\n".join([one async for one in _lines(reader)])
    value = json.loads(body)
    if reply.status != 200:
        reply.error = value["error"]["code"]
        return stays
    (choice,) = value["choices"]
    reply.text = choice["message"]["content"] if "message" in choice else choice["text"]
    reply.finish, reply.tokens = choice["finish_reason"], value["usage"]["completion_tokens"]
    reply.first = choice["unmask"]["first_token_seconds"]
    return stays


def _event(value, reply, began):
    if "error" in value:
        reply.error = value["error"]["code"]
        return
    for choice in value["choices"]:
        delta = choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
        if delta and reply.first is None:
            reply.first = time.perf_counter() - began
        reply.text += delta
        if choice["finish_reason"]:
            reply.finish, reply.tokens = choice["finish_reason"], choice["unmask"]["tokens"]


async def _lines(reader):
    """The lines of a chunked body."""
    held = b""
    while size := int(await reader.readline(), 16):
        held += await reader.readexactly(size)
        await reader.readexactly(2)
        *whole, held = held.split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    yield held
    await reader.readline()


async def crowd(port, jobs, concurrency, leave=lambda number: None, done=lambda number: None):
    """Ask all jobs, so many at a time; their replies in order. ``leave(number)``: seconds after which one is left."""
    replies = [None] * len(jobs)
    waiting = iter(enumerate(jobs))

    async with Connections(port) as connections:

        async def one_after_the_other():
            for number, (path, body) in waiting:
                replies[number] = await connections.ask(path, body, leave(number))
                done(number)

        await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
    return replies
