"""How many threads some work is done by fastest, as measured while it is done.

What an operation gains by more threads depends on who else uses the processors: where one of them is busy, all threads
wait for the one that does not run just then, and many threads can be many times slower than one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

TRYING = 0.05  # of the time may be lost by trying other numbers of threads
SOONEST = 0.25  # seconds between two tries
LATEST = 60.0  # seconds for which all levels take fewer threads
HINDERED = 2.0  # times slower than before: somebody else uses a processor


@dataclass
class Others:
    """Whether somebody else uses the processors: ``until`` this time more threads are not tried again."""

    until: float = 0.0


class Level:
    """Work of about one size: the number of threads that is fastest now, of ``most`` and the powers of two below.

    What is in use is measured all the time, and a number next to it now and then: the less often, the more it has cost.
    Where more threads are suddenly much slower than before, all levels take fewer at once.
    """

    def __init__(self, most: int, others: Others) -> None:
        self.numbers = [1 << i for i in range((most - 1).bit_length())] + [most]
        self.others, self.known = others, others.until
        self.place = len(self.numbers) - 2  # of the number in use; the most is tried next
        self.seconds: dict[int, float] = {}  # for one unit of work, by number
        self.warm = False
        self.due = 0.0  # when another number is tried
        self.step = 1  # in which direction

    def choose(self, now: float) -> int:
        """The number of threads to take."""
        if self.known < self.others.until:
            self._fewer()
        used = self.numbers[self.place]
        if used not in self.seconds or now < self.due:
            return used
        steps = [s for s in (self.step, -self.step) if 0 <= self.place + s < len(self.numbers)]
        return next((self.numbers[self.place + s] for s in steps if s < 0 or now >= self.others.until), used)

    def took(self, number: int, seconds: float, work: float, now: float) -> None:
        """Some work has taken some time. The first time is not counted: memory is taken, code is loaded."""
        if not self.warm:
            self.warm = True
            return
        used, each = self.numbers[self.place], seconds / work
        before = min((known for n, known in self.seconds.items() if n <= number), default=each)
        lost = (each - self.seconds.get(used, each)) * work
        if number != used:
            self.due = now + max(SOONEST, lost / TRYING)
            self.step = self.step if lost < 0 else -self.step
        if number > 1 and each > HINDERED * before:
            wait = (each - before) * work / TRYING
            self.others.until = max(self.others.until, now + min(LATEST, max(SOONEST, wait)))
            if number == used:
                self._fewer()
            self.known = self.others.until
        elif number == used:
            self.seconds[used] = (self.seconds.get(used, each) + each) / 2
        else:
            self.seconds[number] = each
            self.place = self.numbers.index(number) if lost < 0 else self.place

    def _fewer(self) -> None:
        """Step down; what the more threads took is no longer true."""
        self.known = self.others.until
        if self.place:
            self.seconds.pop(self.numbers[self.place], None)
            self.place -= 1


OTHERS = Others()


class Pace:
    """Numbers of threads of one kind of work, by its size. Python's threads may share one."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, others: Others = OTHERS) -> None:
        self.clock, self.others = clock, others
        self.levels: dict[tuple[int, int], Level] = {}

    @contextmanager
    def measured(self, most: int, work: float) -> Iterator[int]:
        """The number of threads to take for what stands in the block, which is measured.

        Args:
            most: more are not taken; at least 2.
            work: how much it is, in any unit; more than 0.
        """
        level = self.levels.setdefault((most, math.frexp(work)[1]), Level(most, self.others))
        began = self.clock()
        number = level.choose(began)
        yield number
        now = self.clock()
        level.took(number, now - began, work, now)
