"""The engine as the event loop sees it: what is asked of it, and what it tells."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ..engine.outcome import Outcome
from ..engine.request import Request
from .host import Host
from .wire import Abort, Add, Added, Ended, Job, Load, News, Order, Progress, Rules, Stop, Unpacker, Watch, packed

BEHIND = 1024  # forward passes that a reader of step events may be behind


@dataclass
class Ticket:
    """A request on its way through the engine.

    Attributes:
        request: with an id that no other request has.
        watch: what is told before the end.
        max_nfe: forward passes after which it ends; None: no limit.
        accepted: done once the engine has queued the request; holds the error of one that cannot be decoded.
        news: set whenever something is told; one for all the tickets of a plan.
        outcome: how it ended; None before.
        failure: what broke the engine while it was decoded; None: nothing.
        first: seconds from its arrival to its first token that can no longer change; None before its end.
        seconds: from its arrival to its end.
    """

    request: Request
    watch: Watch
    max_nfe: int | None
    accepted: asyncio.Future[None]
    news: asyncio.Event
    arrived: float = field(default_factory=time.perf_counter)
    told: deque[Progress] = field(default_factory=deque)
    outcome: Outcome | None = None
    failure: str | None = None
    first: float | None = None
    seconds: float = 0.0
    limited: bool = False  # ended by max_nfe
    overrun: bool = False  # ended because its reader was too far behind

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.outcome is not None or self.failure is not None

    def fail(self, why: str, error: Exception | None = None) -> None:
        """End it without an outcome; ``error``: it has not been queued."""
        self.failure = why
        if not self.accepted.done():
            if error is None:
                self.accepted.set_result(None)
            else:
                self.accepted.set_exception(error)
                self.accepted.exception()  # one of several is looked at
        self.news.set()


class Worker(asyncio.Protocol):
    """An engine and the tickets of its requests; all of it on the event loop's thread.

    Args:
        host: of the engine.
        passed: called with the number of rows of every forward pass.

    Attributes:
        load: what the engine had to do when it last said so.
        lost: whether it has ended without having been told to.
    """

    def __init__(self, host: Host, passed: Callable[[int], None]) -> None:
        self.host, self.passed = host, passed
        self.load = Load()
        self._tickets: dict[Any, Ticket] = {}
        self._unpacker, self._rules = Unpacker(), Rules()
        self._transport: asyncio.WriteTransport | None = None
        self._stopping = self.lost = False

    async def start(self) -> None:
        """Begin to decode."""
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self, self.host.line)
        self.host.start()

    @property
    def alive(self) -> bool:
        """Whether requests can be added."""
        return self._transport is not None and not self._stopping and self.host.alive

    @property
    def busy(self) -> bool:
        """Whether a request has not ended."""
        return bool(self._tickets)

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Queue requests, all of them or none; see :attr:`Ticket.accepted`."""
        try:
            self._send(Add([self._job(ticket) for ticket in tickets]))
        except BaseException:
            self._rules.forget()
            raise
        self._tickets |= {ticket.request.id: ticket for ticket in tickets}

    def _job(self, ticket: Ticket) -> Job:
        request, made = ticket.request.bare(), ticket.request.constraint
        if made is None:
            return Job(request, ticket.watch, ticket.max_nfe)
        known = self._rules.sent(made.number, None) is not None
        self._rules.sent(made.number, made)
        return Job(request, ticket.watch, ticket.max_nfe, made.number, None if known else made)

    def abort(self, ids: Sequence[Any]) -> None:
        """End requests before the next forward pass; those that have ended are ignored."""
        self._send(Abort(ids))

    def stop(self) -> None:
        """End all requests and the engine."""
        self._stopping = True
        self._send(Stop())

    def kill(self) -> None:
        """End the engine at once, in the middle of a forward pass, if it can be. May be called by a signal."""
        self._stopping = True
        self.host.kill()

    def _send(self, order: Order) -> None:
        if self._transport is not None:
            self._transport.write(packed(order))

    # --- what the engine tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine can be reached."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        """Some of what the engine tells."""
        for several in self._unpacker.feed(data):
            for news in several:
                self._hear(news)

    def connection_lost(self, _: Exception | None) -> None:
        """The engine has ended, and was told to or not."""
        self._transport, self.load = None, Load()
        self.lost = not self._stopping
        self._lose([*self._tickets], "the engine has ended")

    def _hear(self, news: News) -> None:
        if isinstance(news, Load):
            self.load = news
            for rows in news.rows:
                self.passed(rows)
        elif isinstance(news, Progress):
            self._progress(self._tickets[news.id], news)
        elif isinstance(news, Ended):
            self._ended(self._tickets.pop(news.id), news)
        elif isinstance(news, Added):
            self._added(news)
        else:
            self._lose(news.ids, news.why)

    def _added(self, news: Added) -> None:
        for one in news.ids:
            if news.error is not None:
                self._tickets.pop(one).fail(str(news.error), news.error)
            elif not self._tickets[one].accepted.done():  # its client may have left
                self._tickets[one].accepted.set_result(None)

    def _progress(self, ticket: Ticket, progress: Progress) -> None:
        if progress.frame is None and ticket.told and ticket.told[-1].frame is None:  # not read yet: one piece of text
            progress = replace(progress, ids=[*ticket.told.pop().ids, *progress.ids])
        ticket.told.append(progress)
        if len(ticket.told) > BEHIND and not ticket.overrun:
            ticket.overrun = True
            self.abort([ticket.request.id])
        ticket.news.set()

    def _ended(self, ticket: Ticket, news: Ended) -> None:
        ticket.outcome = Outcome(ticket.request, **news.outcome)
        ticket.limited, ticket.seconds = news.limited, news.at - ticket.arrived
        ticket.first = None if news.first is None else news.first - ticket.arrived
        ticket.news.set()

    def _lose(self, ids: Sequence[Any], why: str) -> None:
        for one in ids:
            self._tickets.pop(one).fail(why)
