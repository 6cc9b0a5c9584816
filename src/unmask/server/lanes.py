"""Two engines that take turns, so that a short request need not take part in the forward passes of long ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..core.errors import RequestError
from ..engine.loop import Step
from ..engine.outcome import Event
from ..engine.request import Request
from ..engine.scheduler import Engine

SHORTER = 4  # a request is short beside running ones that are so many times as long, in the mean
DEARER = 2.0  # and goes its own way where a forward pass of theirs takes so many times as long as one of a short one
_KEEP = 0.8  # of a mean over forward passes, what the next one leaves


class Lanes:
    """An engine's face to two of them: ``main``, and ``express`` for requests that are short beside those in main.

    A short request joins main unless a forward pass of main is much dearer than one of its own, as it is on a CPU,
    where time grows with the number of rows. The lanes get equal shares of time; express has priority for as long as
    the last forward pass of main took. So a short request ends after the forward pass it finds running and at most
    twice its time alone, if no other short ones are there. What a response is does not depend on its lane.

    Args:
        make: builds an engine from its batch size and its memory budget.
        batch_size, memory: of both together; express has an eighth of each, one row at least.
        clock: seconds.
    """

    def __init__(
        self,
        make: Callable[[int, int | None], Engine],
        batch_size: int,
        memory: int | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        small = None if memory is None else memory // 8
        self.memory, self.clock = memory, clock
        self.main = make(batch_size, None if memory is None or small is None else memory - small)
        self.express = make(max(1, batch_size // 8), max(1, small) if small is not None else None)
        self._lengths: dict[Any, int] = {}  # of what is in main
        self._spent = 0.0  # seconds that express has had more than main, while both were busy
        self._dear = 0.0  # seconds of main's dearest forward pass of late
        self._cheap: float | None = None  # mean seconds of a forward pass of express

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do or to tell."""
        return self.main.busy or self.express.busy

    @property
    def running(self) -> int:
        """Responses that are being decoded."""
        return self.main.running + self.express.running

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self.main.waiting + self.express.waiting

    @property
    def used(self) -> int:
        """Bytes of the responses being decoded; counted with a budget only."""
        return self.main.used + self.express.used

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError, ModelError: see :meth:`Engine.add`.
        """
        if self._apart(request):
            try:
                self.express.check(request)
            except RequestError:  # more memory than express has
                self.main.check(request)
            else:
                if not self.express.busy:
                    self._spent = -self._dear
                self.express.add(request)
                return
        self.main.add(request)
        self._lengths[request.id] = len(request.prompt) + request.gen_length

    def abort(self, id: Any) -> None:
        """End a request before the next forward pass."""
        self.main.abort(id)
        self.express.abort(id)

    def step(self) -> list[Event]:
        """One forward pass of the lane whose turn it is."""
        both = self.main.busy and self.express.busy
        first = self.express.busy and (not both or self._spent <= 0)
        began = self.clock()
        events = (self.express if first else self.main).step()
        took = self.clock() - began
        self._spent = self._spent + (took if first else -took) if both else 0.0
        for event in events:
            if isinstance(event, Step):
                self._learn(event, took, first)
            else:
                self._lengths.pop(event.request.id, None)
        return events

    def _learn(self, step: Step, took: float, first: bool) -> None:
        """Note what a forward pass costs."""
        if first:
            self._cheap = took if self._cheap is None else _KEEP * self._cheap + (1 - _KEEP) * took
        else:
            self._dear = max(took, _KEEP * self._dear)
            if self._cheap is not None and len(step.rows) <= 2:
                self._cheap = min(self._cheap, took)

    def _apart(self, request: Request) -> bool:
        """Whether a request is short beside those in main, and their forward passes are dear."""
        own = len(request.prompt) + request.gen_length
        if not self.main.running or own * SHORTER > _mean(self._lengths):
            return False
        return self._cheap is None or self._dear > DEARER * self._cheap


def _mean(lengths: dict[Any, int]) -> float:
    return sum(lengths.values()) / len(lengths) if lengths else 0.0
