"""How many threads some work is done by fastest, as measured while it is done.

What an operation gains by more threads depends on who else uses the processors: where one of them is busy, all threads
wait for the one that does not run just then, and many threads can be many times slower than one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MORE, FEWER = 0.05, 0.01  # of the time may be lost by trying more threads, and fewer: two slow passes call for these
SOONEST = 0.25  # seconds between two tries
HINDERED = 2.0  # times slower than before, twice in a row: somebody else uses a processor
LATEST = 60.0  # seconds at most for which all levels then do without more threads, or wait for the try of another
GREATEST = 100.0  # times what is usual that a time may count as: a process stopped for an hour has not lost an hour
EQUAL = 0.05  # slower, fewer threads are still preferred


@dataclass
class Others:
    """What all levels know: ``until`` when nobody tries more threads, for somebody else uses the processors, and since
    when any of them may try ``more`` or ``fewer`` again.
    """

    until: float = 0.0
    more: float = 0.0
    fewer: float = 0.0


OTHERS = Others()


class Level:
    """Work of about one size: the number of threads that is fastest now, of ``most`` and the powers of two below.

    What is in use is measured all the time, and a number next to it now and then: the less often, the more it has cost.
    Where more threads are suddenly much slower than before, all levels take fewer at once.
    """

    def __init__(self, most: int, others: Others) -> None:
        self.numbers = [1 << i for i in range((most - 1).bit_length())] + [most]
        self.others, self.heard = others, others.until
        self.place = len(self.numbers) - 2  # of the number in use; the most is tried next
        self.seconds: dict[int, float] = {}  # for one unit of work, by number
        self.warm = False
        self.slow = 0  # times in a row
        self.due = 0.0  # when another number is tried; the first time does not wait for those of other levels
        self.fresh = True
        self.turn = 0  # which

    @property
    def used(self) -> int:
        """The number in use."""
        return self.numbers[self.place]

    def choose(self, now: float) -> int:
        """The number of threads to take."""
        if self.heard < self.others.until:
            self._fewer()
        if self.used not in self.seconds or now < self.due:
            return self.used
        more = self.used < self.numbers[-1] and now >= self.others.until and (self.fresh or now >= self.others.more)
        fewer = self.place > 0 and (self.fresh or now >= self.others.fewer)
        tried = [self.place + step for step, free in ((1, more), (-1, fewer)) if free]
        return self.numbers[tried[self.turn % len(tried)]] if tried else self.used

    def took(self, number: int, seconds: float, work: float, now: float, alarms: bool) -> None:
        """Some work has taken some time. The first time is not counted: memory is taken, code is loaded."""
        if not self.warm:
            self.warm = True
        elif number == self.used:
            self._go_on(seconds / work, work, now, alarms)
        else:
            self._compare(number, seconds / work, work, now)

    def _go_on(self, each: float, work: float, now: float, alarms: bool) -> None:
        before = min((known for n, known in self.seconds.items() if n <= self.used), default=each)
        self.slow = self.slow + 1 if self.used > 1 and each > HINDERED * before else 0
        if not self.slow:
            self.seconds[self.used] = (self.seconds.get(self.used, each) + each) / 2
        elif self.slow > 1:
            wait = min(LATEST, max(SOONEST, (each - before) * work / MORE))
            self.due = now + wait
            if alarms:
                self.others.until = max(self.others.until, self.due)
            self._fewer()

    def _compare(self, number: int, each: float, work: float, now: float) -> None:
        known = self.seconds[self.used]
        apart = min(abs(each - known), GREATEST * min(each, known))
        more, self.fresh = number > self.used, False
        wait = apart * work / (MORE if more else FEWER)
        self.due, shared = now + max(SOONEST, wait), now + min(LATEST, wait)
        if more:
            self.others.more = max(self.others.more, shared)
        else:
            self.others.fewer = max(self.others.fewer, shared)
        better = each < (known if more else known * (1 + EQUAL))
        self.turn = self.turn + 1 if not better else 0 if more else -1  # on in this direction
        self.seconds[number] = each
        if better:
            self.place = self.numbers.index(number)

    def _fewer(self) -> None:
        self.heard, self.turn, self.slow = self.others.until, 0, 0
        self.place = max(0, self.place - 1)


class Pace:
    """Numbers of threads of one kind of work, by its size. Python's threads may share one; a copy knows nothing yet."""

    def __init__(
        self, alarms: bool = True, clock: Callable[[], float] = time.perf_counter, others: Others = OTHERS
    ) -> None:
        """Args:
        alarms: where this work is suddenly slow, other work takes fewer threads as well.
        clock: seconds.
        others: shared by all that hear of each other.
        """
        self.alarms, self.clock, self.others = alarms, clock, others
        self.levels: dict[tuple[int, int], Level] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Pace, (self.alarms,)

    @contextmanager
    def measured(self, most: int, work: float) -> Iterator[int]:
        """The number of threads to take for what stands in the block, which is measured.

        Args:
            most: more are not taken; at least 2.
            work: how much it is, in any unit; more than 0.
        """
        key = most, math.frexp(work)[1]
        with self._lock:
            level = self.levels.get(key) or self.levels.setdefault(key, Level(most, self.others))
            began = self.clock()
            number, used = level.choose(began), level.used
        yield number
        with self._lock:
            if level.used == used:  # no other thread has changed it meanwhile
                now = self.clock()
                level.took(number, now - began, work, now, self.alarms)
