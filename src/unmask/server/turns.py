"""The interpreter by turns: the engine has it during a forward pass, the event loop between two.

Whoever runs a kernel gives the interpreter up, and waits to have it back if another thread has taken it. With the event
loop at work beside a forward pass that happens some thousand times a second, and costs the engine more than the work of
the loop does. Nothing is lost by waiting for the end of the pass: requests enter and leave between two passes anyway.
"""

from __future__ import annotations

import selectors
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONGEST = 0.05  # seconds of a forward pass that the loop waits for
_MOST = 0.01  # seconds between two passes that the engine waits for the loop


class Turns:
    """What the thread of the event loop and that of the engine know of each other."""

    def __init__(self) -> None:
        self._free, self._idle = threading.Event(), threading.Event()
        self._free.set()
        self._kept = False  # by a loop whose selector is a Waiting
        self._elsewhere = 0
        self._told = self._heard = 0

    # --- on the event loop's thread

    def rest(self) -> None:
        """The loop has nothing to do, and will sleep."""
        self._kept = True
        if not self._elsewhere and self._heard == self._told:
            self._idle.set()

    def wake(self) -> bool:
        """The loop has something to do: wait for the end of a forward pass, for a while at most. Whether it had to."""
        self._idle.clear()
        if self._free.is_set():
            return False
        self._free.wait(_LONGEST)
        return True

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """The loop waits for another thread, whose work is part of its own."""
        self._elsewhere += 1
        try:
            yield
        finally:
            self._elsewhere -= 1

    # --- on the engine's thread

    @contextmanager
    def taken(self) -> Iterator[None]:
        """For a forward pass."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def telling(self, call: Callable[[], None]) -> Callable[[], None]:
        """What the loop is to be given instead of a call, so that :meth:`give` knows when it has heard."""
        self._told += 1
        self._idle.clear()

        def heard() -> None:
            self._heard += 1
            call()

        return heard

    def give(self) -> None:
        """Wait until the loop has done what it has to do, for a while at most."""
        if self._kept:
            self._idle.wait(_MOST)


class Waiting(selectors.DefaultSelector):
    """What an event loop waits with that keeps to turns: what comes during a forward pass is told at its end."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As of any selector."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        self._turns.rest()
        ready = super().select(timeout)
        return super().select(0) if self._turns.wake() else ready
