"""Numbers of threads by what they take, on machines whose times are made up."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.core.pace import HINDERED, Others, Pace

Speed = Callable[[int, float], float]  # of so many threads at a time, where one alone has 1

QUIET = {1: 1.0, 2: 1.7, 4: 2.9, 8: 5.0, 16: 9.0, 32: 16.0, 64: 28.0}
BUSY = {1: 1.0, 2: 0.2}  # one of two processors is somebody else's


class Machine:
    """Does work in time that it makes up, and keeps which numbers of threads were taken when."""

    def __init__(self, speed: Speed) -> None:
        self.speed, self.now, self.taken, self.inside = speed, 100.0, list[tuple[float, int]](), False
        self.others = Others()
        self.pace = Pace(lambda: self.now, self.others)

    def do(self, most: int, work: float) -> int:
        """Some work, whose unit takes one thread a second."""
        with self.pace.measured(most, work) as number:
            self.taken.append((self.now, number))
            self.now += work / self.speed(number, self.now)
        return number

    def run(self, seconds: float, most: int = 2, work: float = 0.02) -> float:
        """Work for so long; how much was done."""
        end, done = self.now + seconds, 0
        while self.now < end:
            self.do(most, work)
            done += 1
        return done * work

    def share(self, number: int) -> float:
        return sum(taken == number for _, taken in self.taken) / len(self.taken)


def always(speeds: dict[int, float]) -> Speed:
    return lambda number, _: speeds[number]


@pytest.mark.parametrize("most", [2, 8, 64])
def test_all_threads_where_they_are_faster(most: int) -> None:
    machine = Machine(always(QUIET))
    assert machine.run(20, most) > 20 * QUIET[most] * 0.9
    assert {number for _, number in machine.taken} == {most // 2, most}, "far fewer are not tried: that would take long"


def test_one_thread_where_another_process_takes_a_processor() -> None:
    machine = Machine(always(BUSY))
    assert machine.run(20) > 20 * 0.9
    assert machine.share(2) < 0.02
    assert machine.share(2) > 0, "more are tried again"


def test_what_changes_is_followed() -> None:
    """Ten seconds quiet, ten busy, and so on."""
    machine = Machine(lambda number, now: (BUSY if now // 10 % 2 else QUIET)[number])
    best = 30 * QUIET[2] + 30 * BUSY[1]
    assert machine.run(60) > 0.85 * best


def test_long_work_is_tried_rarely() -> None:
    """A forward pass of seconds: what trying fewer threads costs stays in proportion."""
    machine = Machine(always(QUIET))
    assert machine.run(2000, 64, work=100.0) > 2000 * QUIET[64] * 0.9


def test_all_sizes_take_fewer_at_once() -> None:
    quiet = True
    machine = Machine(lambda number, _: (QUIET if quiet else BUSY)[number])
    for _ in range(20):
        assert {machine.do(2, work) for work in (0.01, 0.1, 1.0)} <= {1, 2}
    assert machine.do(2, 0.1) == 2 or machine.do(2, 0.1) == 2, "the second of them is no try"
    quiet = False
    while machine.do(2, 0.01) != 2:
        pass
    assert machine.others.until > machine.now
    assert [machine.do(2, work) for work in (0.1, 0.01, 0.02)] == [1, 1, 1]


def test_a_short_disturbance_costs_little() -> None:
    """A pass that takes ten times as long, once in two seconds."""
    machine = Machine(lambda number, now: QUIET[number] / (10 if now % 2 < 0.01 else 1))
    assert machine.run(60) > 60 * QUIET[2] * 0.75


@given(st.lists(st.floats(0.05, 4.0), min_size=2, max_size=6), st.sampled_from([1e-3, 0.1, 3.0]))
def test_any_machine(gains: list[float], work: float) -> None:
    """Not slower than the better of the two numbers it begins with, by more than tries may cost."""
    speeds = {1 << i: math.prod(gains[:i]) for i in range(len(gains) + 1)}
    most = max(speeds)
    machine = Machine(always(speeds))
    done = sum(work for _ in range(400) if machine.do(most, work))
    first = 3 * work / min(speeds[most], speeds[most // 2])  # nothing is known of any number yet
    beside = work / min(speeds.values())  # one try of a number further down
    least = done / max(speeds[most], speeds[most // 2])
    assert machine.now - 100 <= 1.2 * least * HINDERED + first + len(speeds) * beside


def test_what_broke_is_not_measured() -> None:
    machine = Machine(always(QUIET))
    for _ in range(3):
        machine.do(2, 0.1)
    (level,) = machine.pace.levels.values()
    before = dict(level.seconds)
    with pytest.raises(ZeroDivisionError), machine.pace.measured(2, 0.1):
        _ = 1 / 0
    assert level.seconds == before
