"""The thread in which the engine runs, and what the event loop and it tell each other."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from ..api import Model
from ..core.errors import UnmaskError
from ..engine.loop import Step
from ..engine.outcome import Event, Outcome
from ..engine.request import Request
from .frames import Frame, frames
from .lanes import Lanes
from .turns import Turns

_LOG = logging.getLogger(__name__)
_TRIM = 30.0  # seconds between two times that freed memory goes back to the system; it costs to ask for it anew
BEHIND = 1024  # forward passes that a reader of step events may be behind


try:
    _malloc_trim: Callable[[int], int] | None = ctypes.CDLL(None).malloc_trim
except (AttributeError, OSError, TypeError):  # not glibc
    _malloc_trim = None


class Watch(Enum):
    """What of a request's decoding is told before its end."""

    NOTHING = 0
    TEXT = 1
    STEPS = 2


@dataclass(frozen=True)
class Progress:
    """What one forward pass brought a response.

    Attributes:
        ids: tokens that can no longer change, behind those told before.
        frame: all of what the forward pass did; None unless it is watched.
    """

    ids: list[int]
    frame: Frame | None


@dataclass
class Ticket:
    """A request on its way through the engine. The event loop makes it and waits for it; the engine's thread fills it.

    Attributes:
        request: with an id that no other request has.
        watch: what is told before the end.
        max_nfe: forward passes after which it ends; None: no limit.
        accepted: done once the engine has queued the request; holds the error of one that cannot be decoded.
        news: set whenever something is told; one for all the tickets of a plan.
        outcome: how it ended; None before.
        failure: what broke the engine while it was decoded; None: nothing.
        first: seconds from its arrival to its first token that can no longer change; None before.
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
    nfe: int = 0  # the engine thread's count
    settled: int = 0  # tokens told so far

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.outcome is not None or self.failure is not None


class Worker:
    """An engine and its thread.

    Args:
        lm: the model.
        batch_size, memory: of the engine; see :class:`~unmask.server.lanes.Lanes`.
        on_step: called on the engine's thread with every step.
    """

    def __init__(
        self, lm: Model, batch_size: int, memory: int | None, on_step: Callable[[Step], None] | None = None
    ) -> None:
        self._make: Callable[[], Lanes] = partial(Lanes, lm.engine, batch_size, memory)
        self.lm, self.engine, self.on_step = lm, self._make(), on_step
        self.turns = Turns()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[Any, Ticket] = {}
        self._batch: list[Callable[[], None]] = []
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trimmed = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to decode; what is told goes to this event loop."""
        self._loop = loop
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive() and not self._stopping

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Queue requests, all of them or none; see :attr:`Ticket.accepted`."""
        self._orders.put(partial(self._add, tickets))

    def abort(self, ids: Sequence[Any]) -> None:
        """End requests before the next forward pass; those that have ended are ignored."""
        self._orders.put(partial(self._abort, ids))

    def stop(self, wait: float = 10.0) -> None:
        """End all requests and the thread, which is waited for, for so many seconds at most."""
        self._orders.put(self._stop)
        self._thread.join(wait)

    # --- on the engine's thread

    def _run(self) -> None:
        while not self._stopping:
            self._obey(wait=not self.engine.busy)
            try:
                with self.turns.taken():
                    events = self.engine.step() if self.engine.busy and not self._stopping else []
            except Exception as error:  # the engine looks after its requests; this is for what it did not foresee
                _LOG.exception("the engine failed; its requests end, and another one takes its place")
                self._broken(f"{type(error).__name__}: {error}")
                events = []
            self._tell(events)
            if time.monotonic() - self._trimmed > _TRIM:
                self._trim()
            self.turns.give()
        self._broken("the server has stopped")
        self._flush()

    def _obey(self, wait: bool) -> None:
        """Carry out what has been asked for; ``wait`` for something, for a while, if there is nothing."""
        try:
            self._orders.get(block=wait, timeout=_TRIM)()
            while True:
                self._orders.get_nowait()()
        except queue.Empty:
            pass

    def _trim(self) -> None:
        """Give freed memory back: a heap from which tensors of many sizes come keeps a fifth more than is in use."""
        self._trimmed = time.monotonic()
        if _malloc_trim is not None:
            _malloc_trim(0)

    def _add(self, tickets: Sequence[Ticket]) -> None:
        added: list[Ticket] = []
        try:
            for ticket in tickets:
                self.engine.add(ticket.request)
                self._tickets[ticket.request.id] = ticket
                added.append(ticket)
        except Exception as error:  # UnmaskError, for the most part
            if not isinstance(error, UnmaskError):
                _LOG.exception("a request could not be added")
            self._abort([ticket.request.id for ticket in added])
            for ticket in tickets:
                self._tickets.pop(ticket.request.id, None)
            self._later(partial(_refuse, tickets, error))
            return
        self._later(partial(_accept, tickets))

    def _abort(self, ids: Sequence[Any]) -> None:
        for one in ids:
            if one in self._tickets:
                self.engine.abort(one)

    def _stop(self) -> None:
        self._stopping = True

    def _broken(self, why: str) -> None:
        lost, self._tickets = list(self._tickets.values()), {}
        self._later(partial(_fail, lost, why))
        if not self._stopping:
            self.engine = self._make()

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Outcome):
                self._ended(event)
            else:
                self._stepped(event)
        self._flush()

    def _stepped(self, step: Step) -> None:
        """Note what a forward pass brought those that are watched, and end those that have had enough."""
        if self.on_step:
            self.on_step(step)
        slots = [(slot, self._tickets[row]) for slot, row in enumerate(step.rows) if row in self._tickets]
        if not slots:
            return
        final = _final(step, slots)
        shown = [(slot, ticket) for slot, ticket in slots if ticket.watch is Watch.STEPS]
        drawn = frames(step, [slot for slot, _ in shown], [len(t.request.prompt) for _, t in shown]) if shown else {}
        grown = [slot for slot, t in slots if t.watch is not Watch.NOTHING and final[slot] > t.settled]
        tokens = dict(zip(grown, step.canvas.tokens[grown].tolist(), strict=True)) if grown else {}
        now = time.perf_counter()
        for slot, ticket in slots:
            ticket.nfe += 1
            if ticket.first is None and final[slot] > 0:
                ticket.first = now - ticket.arrived
            begin = len(ticket.request.prompt)
            ids = tokens[slot][begin + ticket.settled : begin + final[slot]] if slot in tokens else []
            ticket.settled += len(ids)
            if ids or slot in drawn:
                self._later(partial(_progress, ticket, Progress(ids, drawn.get(slot))))
            ticket.limited = ticket.nfe == ticket.max_nfe and ticket.request.id not in step.finished
            ticket.overrun = ticket.overrun or len(ticket.told) > BEHIND
            if ticket.limited or ticket.overrun:
                self.engine.abort(ticket.request.id)

    def _ended(self, outcome: Outcome) -> None:
        ticket = self._tickets.pop(outcome.request.id, None)
        if ticket is not None:
            ticket.seconds = time.perf_counter() - ticket.arrived
            self._later(partial(_end, ticket, outcome))

    def _later(self, call: Callable[[], Any]) -> None:
        self._batch.append(call)

    def _flush(self) -> None:
        """Have the event loop do what has been noted for it."""
        batch, self._batch = self._batch, []
        if batch and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self.turns.telling(partial(_do, batch)))
            except RuntimeError:  # it is closed: nobody listens any more
                self._stopping = True


def _final(step: Step, slots: Sequence[tuple[int, Ticket]]) -> dict[int, int]:
    """Tokens of each response that can no longer change, by slot.

    Those before the first masked position; of a policy that re-masks, those before the window of the last forward
    pass: it re-masks within its window, and a window never begins before the one of an earlier forward pass. None if
    it changes lengths too.
    """
    starts: list[int] | None = None
    found = {}
    for slot, ticket in slots:
        status = step.status[slot]
        settled = status.settled
        if ticket.request.policy.remasks and ticket.request.policy.resizes and not status.done:
            settled = 0
        elif ticket.request.policy.remasks and not status.done:
            if starts is None:
                starts = step.canvas.first(step.ask.window).tolist()
            settled = min(settled, starts[slot])
        found[slot] = max(0, settled - len(ticket.request.prompt))
    return found


# --- on the event loop


def _do(batch: Sequence[Callable[[], None]]) -> None:
    for call in batch:
        call()


def _accept(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        if not ticket.accepted.done():
            ticket.accepted.set_result(None)


def _refuse(tickets: Sequence[Ticket], error: Exception) -> None:
    for ticket in tickets:
        ticket.failure = str(error)
        if not ticket.accepted.done():
            ticket.accepted.set_exception(error)
        ticket.accepted.exception()  # one of several is looked at
        ticket.news.set()


def _progress(ticket: Ticket, progress: Progress) -> None:
    if progress.frame is None and ticket.told and ticket.told[-1].frame is None:  # not read yet: one piece of text
        progress = Progress([*ticket.told.pop().ids, *progress.ids], None)
    ticket.told.append(progress)
    ticket.news.set()


def _end(ticket: Ticket, outcome: Outcome) -> None:
    ticket.outcome = outcome
    ticket.news.set()


def _fail(tickets: Sequence[Ticket], why: str) -> None:
    for ticket in tickets:
        ticket.failure = why
        if not ticket.accepted.done():
            ticket.accepted.set_result(None)
        ticket.news.set()
