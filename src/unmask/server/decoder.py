"""The engine of a server: it takes orders from a socket, decodes, and tells what comes of it."""

from __future__ import annotations

import ctypes
import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

from .. import registry
from ..api import Model
from ..constraints.automaton import Automaton
from ..core.errors import RequestError, UnmaskError
from ..engine.loop import Step
from ..engine.outcome import Event, Outcome
from ..engine.request import Request
from .frames import frames
from .lanes import Lanes
from .settings import Settings
from .wire import Abort, Add, Added, Broken, Ended, Job, Load, News, Progress, Rules, Unpacker, Watch, packed

_LOG = logging.getLogger(__name__)
_TRIM = 30.0  # seconds between two times that freed memory goes back to the system; it costs to ask for it anew
_PIECE = 1 << 18  # bytes read at a time


try:
    _malloc_trim: Callable[[int], int] | None = ctypes.CDLL(None).malloc_trim
except (AttributeError, OSError, TypeError):  # not glibc
    _malloc_trim = None


@dataclass
class _Running:
    """A request that has been added."""

    job: Job
    request: Request
    first: float | None = None  # when its first token could no longer change
    limited: bool = False  # ended by max_nfe
    nfe: int = 0
    settled: int = 0  # tokens told so far


class Decoder:
    """An engine that is served.

    Args:
        lm: the model.
        settings: batch size and memory.
        line: the engine's end of the socket.
    """

    def __init__(self, lm: Model, settings: Settings, line: socket.socket) -> None:
        self._make: Callable[[], Lanes] = partial(Lanes, lm.engine, settings.batch_size, settings.budget)
        self.engine = self._make()
        self._line, self._unpacker = line, Unpacker()
        self._policy = lru_cache(maxsize=256)(registry.policy)  # what one has loaded lives as long as it is known
        self._rules = Rules()
        self._requests: dict[Any, _Running] = {}
        self._news: list[News] = []
        self._rows: list[int] = []
        self._load = Load()
        self._stopping = False
        self._trimmed = 0.0

    def run(self) -> None:
        """Decode until told to stop, or nobody is at the other end."""
        try:
            while not self._stopping:
                self._obey(wait=not self.engine.busy)
                try:
                    events = self.engine.step() if self.engine.busy and not self._stopping else []
                except Exception as error:  # the engine looks after its requests; this is for what it did not foresee
                    _LOG.exception("the engine failed; its requests end, and another one takes its place")
                    self._broken(f"{type(error).__name__}: {error}")
                    events = []
                self._tell(events)
                if time.monotonic() - self._trimmed > _TRIM:
                    self._trim()
            self._broken("the server has stopped")
            self._flush()
        except (EOFError, ConnectionError):
            _LOG.debug("the other end is closed")
        finally:
            self._line.close()

    def _obey(self, wait: bool) -> None:
        """Carry out what has been asked for; ``wait`` for something, for a while, if there is nothing.

        Raises:
            EOFError: the other end is closed.
        """
        self._line.settimeout(_TRIM if wait else 0.0)
        with suppress(BlockingIOError, TimeoutError):  # there is nothing more
            while True:
                data = self._line.recv(_PIECE)
                if not data:
                    raise EOFError
                for order in self._unpacker.feed(data):
                    if isinstance(order, Add):
                        self._add(order.jobs)
                    elif isinstance(order, Abort):
                        self._abort(order.ids)
                    else:
                        self._stopping = True
                self._line.settimeout(None if self._unpacker.amid else 0.0)

    def _trim(self) -> None:
        """Give freed memory back: a heap from which tensors of many sizes come keeps a fifth more than is in use."""
        self._trimmed = time.monotonic()
        if _malloc_trim is not None:
            _malloc_trim(0)

    def _add(self, jobs: Sequence[Job]) -> None:
        ids = [job.request.id for job in jobs]
        rules = [None if job.rule is None else self._rules.sent(job.rule, job.automaton) for job in jobs]
        try:
            for job, rule in zip(jobs, rules, strict=True):
                request = self._whole(job, rule)
                self.engine.add(request)
                self._requests[request.id] = _Running(job, request)
        except Exception as error:
            if isinstance(error, UnmaskError):
                told: Exception = error if type(error) is RequestError else RequestError(str(error))
            else:
                _LOG.exception("a request could not be added")
                told = RuntimeError(type(error).__name__)
            self._abort(ids)
            for one in ids:
                self._requests.pop(one, None)
            self._news.append(Added(ids, told))
        else:
            self._news.append(Added(ids))

    def _whole(self, job: Job, rule: Automaton | None) -> Request:
        """The request with its policy, its cache and its constraint."""
        if rule is None and job.rule is not None:
            raise LookupError(job.rule)
        policy, cache = self._policy(str(job.request.policy)), registry.cache(str(job.request.cache))
        return replace(job.request, policy=policy, cache=cache, constraint=rule)

    def _abort(self, ids: Sequence[Any]) -> None:
        for one in ids:
            if one in self._requests:
                self.engine.abort(one)

    def _broken(self, why: str) -> None:
        self._news.append(Broken([*self._requests], why))
        self._requests = {}
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
        self._rows.append(len(step.rows))
        slots = [(slot, self._requests[row]) for slot, row in enumerate(step.rows) if row in self._requests]
        if not slots:
            return
        final = _final(step, slots)
        shown = [(slot, one) for slot, one in slots if one.job.watch is Watch.STEPS]
        lengths = [len(one.request.prompt) for _, one in shown]
        drawn = frames(step, [slot for slot, _ in shown], lengths) if shown else {}
        grown = [slot for slot, one in slots if one.job.watch is not Watch.NOTHING and final[slot] > one.settled]
        tokens = dict(zip(grown, step.canvas.tokens[grown].tolist(), strict=True)) if grown else {}
        now = time.perf_counter()
        for slot, one in slots:
            request = one.request
            one.nfe += 1
            if one.first is None and final[slot] > 0:
                one.first = now
            begin = len(request.prompt)
            ids = tokens[slot][begin + one.settled : begin + final[slot]] if slot in tokens else []
            one.settled += len(ids)
            if ids or slot in drawn:
                self._news.append(Progress(request.id, ids, drawn.get(slot)))
            one.limited = one.nfe == one.job.max_nfe and request.id not in step.finished
            if one.limited:
                self.engine.abort(request.id)

    def _ended(self, outcome: Outcome) -> None:
        one = self._requests.pop(outcome.request.id, None)
        if one is not None:
            own = {f.name: getattr(outcome, f.name) for f in fields(outcome) if f.name != "request"}
            self._news.append(Ended(outcome.request.id, own, one.first, time.perf_counter(), one.limited))

    def _flush(self) -> None:
        """Send what has been noted.

        Raises:
            ConnectionError: nobody is at the other end.
        """
        engine = self.engine
        load = Load(engine.running, engine.waiting, engine.used, tuple(self._rows))
        if self._news or load != self._load:
            self._line.settimeout(None)
            self._line.sendall(packed([load, *self._news]))
        self._news, self._rows, self._load = [], [], replace(load, rows=())


def _final(step: Step, slots: Sequence[tuple[int, _Running]]) -> dict[int, int]:
    """Tokens of each response that can no longer change, by slot.

    Those before the first masked position; of a policy that re-masks, those before the window of the last forward
    pass: it re-masks within its window, and a window never begins before the one of an earlier forward pass. None if
    it changes lengths too.
    """
    starts: list[int] | None = None
    found = {}
    for slot, one in slots:
        request, status = one.request, step.status[slot]
        settled = status.settled
        if request.policy.remasks and request.policy.resizes and not status.done:
            settled = 0
        elif request.policy.remasks and not status.done:
            if starts is None:
                starts = step.canvas.first(step.ask.window).tolist()
            settled = min(settled, starts[slot])
        found[slot] = max(0, settled - len(request.prompt))
    return found
