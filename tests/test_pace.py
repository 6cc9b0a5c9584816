"""Numbers of threads by what they take, on machines whose times are made up."""

from __future__ import annotations

import copy
import math
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.core.pace import OTHERS, Others, Pace

Speed = Callable[[int, float], float]  # of so many threads at a time, where one alone has 1

QUIET = {1: 1.0, 2: 1.7, 4: 2.9, 8: 5.0, 16: 9.0, 32: 16.0, 64: 28.0}
BUSY = {1: 1.0, 2: 0.2}  # one of two processors is somebody else's


class Machine:
    """Does work in time that it makes up, and keeps which numbers of threads were taken."""

    def __init__(self, speed: Speed, others: Others | None = None) -> None:
        self.speed, self.now, self.taken = speed, 100.0, list[int]()
        self.others = others or Others()
        self.pace = Pace(clock=lambda: self.now, others=self.others)

    def do(self, most: int, work: float, stopped: float = 0.0) -> int:
        """Some work, whose unit takes one thread a second, and the time for which the process is stopped in it."""
        with self.pace.measured(most, work) as number:
            self.taken.append(number)
            self.now += work / self.speed(number, self.now) + stopped
        return number

    def run(self, seconds: float, most: int = 2, work: float = 0.02) -> float:
        """Work for so long; how much was done."""
        end, done = self.now + seconds, 0
        while self.now < end:
            self.do(most, work)
            done += 1
        return done * work

    def share(self, number: int) -> float:
        return self.taken.count(number) / len(self.taken)


def always(speeds: dict[int, float]) -> Speed:
    return lambda number, _: speeds[number]


@pytest.mark.parametrize("most", [2, 8, 64])
def test_all_threads_where_they_are_faster(most: int) -> None:
    machine = Machine(always(QUIET))
    assert machine.run(20, most) > 20 * QUIET[most] * 0.93
    assert set(machine.taken) == {most // 2, most}, "far fewer are not tried: that would take long"


@pytest.mark.parametrize("most", [3, 6, 12])
def test_other_numbers_than_powers_of_two(most: int) -> None:
    machine = Machine(lambda number, _: number**0.9)
    assert machine.run(20, most) > 20 * most**0.9 * 0.93
    assert set(machine.taken) == {1 << (most.bit_length() - 1), most}


@pytest.mark.parametrize("most", [2, 64])
def test_one_thread_where_others_take_the_processors(most: int) -> None:
    machine = Machine(lambda number, _: 1.0 if number == 1 else 0.2)
    assert machine.run(60, most) > 60 * 0.85
    tail = machine.taken[len(machine.taken) // 2 :]
    assert tail.count(1) > 0.97 * len(tail)
    assert tail.count(2) > 0, "more are tried again"


def test_what_changes_is_followed() -> None:
    """Ten seconds quiet, ten busy, and so on."""
    machine = Machine(lambda number, now: (BUSY if now // 10 % 2 else QUIET)[number])
    best = 30 * QUIET[2] + 30 * BUSY[1]
    assert machine.run(60) > 0.9 * best


def test_long_work_is_tried_rarely() -> None:
    """A forward pass of seconds: what trying fewer threads costs stays in proportion."""
    machine = Machine(always(QUIET))
    assert machine.run(2000, 64, work=100.0) > 2000 * QUIET[64] * 0.93


@pytest.mark.parametrize("most", [2, 8, 64])
def test_slow_passes_now_and_then_change_little(most: int) -> None:
    """One in a hundred takes three times as long, whatever the number of threads."""
    draw = random.Random(0)
    machine = Machine(lambda number, _: QUIET[number] / (3 if draw.random() < 0.01 else 1))
    assert machine.run(300, most) > 300 * QUIET[most] * 0.88


def test_all_sizes_take_fewer_at_once() -> None:
    quiet = True
    machine = Machine(lambda number, _: (QUIET if quiet else BUSY)[number])
    sizes = (0.01, 0.1, 1.0)
    for _ in range(50):
        for work in sizes:
            machine.do(2, work)
    assert [machine.do(2, 1.0) for _ in range(10)].count(2) >= 8
    quiet = False
    for _ in range(4):  # two slow ones in a row, whatever is being tried
        machine.do(2, 0.01)
    assert machine.others.until > machine.now
    assert {machine.do(2, work) for work in (*sizes, 5.0)} == {1}


def test_many_sizes_lose_no_more_than_one() -> None:
    """Short pieces of twelve sizes in turn: each could try another number every quarter of a second."""
    machine = Machine(always(QUIET))
    sizes = [2.0**-i for i in range(4, 16)]
    for _ in range(20):
        for work in sizes:
            machine.do(2, work)
    began, rounds = machine.now, 200
    for _ in range(rounds):
        for work in sizes:
            machine.do(2, work)
    assert machine.now - began < rounds * sum(sizes) / QUIET[2] * 1.07


def test_long_work_does_not_keep_short_work_from_more_threads() -> None:
    """A try of fewer threads that costs twenty seconds, and soon after the other processes are gone."""
    others, busy = Others(), True
    long = Machine(always(QUIET), others)
    long.run(300, 64, 1000.0)
    short = Machine(lambda number, _: (BUSY if busy else QUIET)[number], others)
    short.now = long.now
    short.run(10)
    assert short.share(1) > 0.9
    busy = False
    short.taken.clear()
    short.run(20)
    assert short.share(2) > 0.8


def test_the_longest_alarm_counts() -> None:
    machine = Machine(always(QUIET))
    machine.run(3)
    machine.others.until = until = machine.now + 50
    level = next(iter(machine.pace.levels.values()))
    level.place, level.heard = 1, until
    level.took(2, 1.0, 0.02, machine.now, alarms=True)
    level.took(2, 1.0, 0.02, machine.now, alarms=True)
    assert (level.used, machine.others.until) == (1, until)


def test_the_way_down_is_straight() -> None:
    """From 32 threads to one: each number once more than is needed to see that it is slow, the most once."""
    machine = Machine(lambda number, _: 1 / number)
    while machine.do(64, 1e-4) != 1:
        pass
    assert len(set(machine.taken)) == 7
    assert machine.taken.count(64) == 1


def test_fewer_threads_elsewhere_do_not_last() -> None:
    """Another pace of the process takes fewer when this one does, and more again when that is over."""
    others = Others()
    machine = Machine(always(QUIET), others)
    machine.run(1)
    others.until = machine.now + 5
    machine.taken.clear()
    machine.run(4.9)
    assert machine.share(1) == 1
    machine.run(5)
    assert machine.share(2) > 0.45


def test_work_that_never_gains_does_not_hold_others_back() -> None:
    others = Others()
    small, large = (Machine(always(speeds), others) for speeds in (BUSY, QUIET))
    for _ in range(2000):
        small.do(2, 0.01)
        large.now = small.now
        large.do(2, 0.01)
        small.now = large.now
    assert small.share(1) > 0.9
    assert large.share(2) > 0.9


def test_work_without_alarms_keeps_to_itself() -> None:
    machine = Machine(lambda number, now: (QUIET if now < 110 else BUSY)[number])
    machine.pace.alarms = False
    machine.run(20)
    assert machine.others.until == 0
    assert machine.taken[-1] == 1


def test_a_stopped_process_forgets_it_soon() -> None:
    """An hour in a try of more threads, and hours in passes of the number in use."""
    busy = True
    machine = Machine(lambda number, _: (BUSY if busy else QUIET)[number])
    machine.run(5)
    (level,) = machine.pace.levels.values()
    while level.choose(machine.now) == level.used:
        machine.do(2, 0.02)
    machine.do(2, 0.02, stopped=3600)
    busy = False
    for stops in (0, 4):
        for _ in range(stops):
            machine.do(2, 0.02, stopped=3600)
        machine.run(70)
        machine.taken.clear()
        machine.run(10)
        assert machine.share(2) > 0.9


def test_more_threads_are_found_behind_a_number_that_gains_nothing() -> None:
    machine = Machine(always({1: 1.0, 2: 1.0, 4: 2.0}))
    machine.run(2, 4)
    machine.taken.clear()
    machine.run(10, 4)
    assert machine.share(4) > 0.8


def test_what_more_threads_took_is_no_measure_while_they_are_barred() -> None:
    machine = Machine(always({1: 1.0, 2: 1.5, 4: 6.0}))
    machine.run(2, 4)
    machine.others.until = machine.now + 5
    machine.taken.clear()
    machine.run(4.9, 4)
    assert machine.share(2) > 0.9


def test_a_new_size_is_not_told_of_old_alarms() -> None:
    machine = Machine(always(QUIET))
    machine.others.until = machine.now + 5
    assert machine.do(4, 0.02) == 2


@given(st.lists(st.floats(0.2, 2.5), min_size=1, max_size=5), st.sampled_from([1e-3, 0.1, 3.0]))
@settings(max_examples=40)
def test_any_machine(gains: list[float], work: float) -> None:
    """In the long run as fast as with the best number, but for the tries; the more threads, the less one more gains."""
    gains = sorted(gains, reverse=True)
    speeds = {1 << i: math.prod(gains[:i]) for i in range(len(gains) + 1)}
    machine = Machine(always(speeds))
    for _ in range(3000):
        machine.do(max(speeds), work)
    began = machine.now
    for _ in range(3000):
        machine.do(max(speeds), work)
    assert (machine.now - began) * max(speeds.values()) < 3000 * work * 1.25


def test_what_broke_is_not_measured() -> None:
    machine = Machine(always(QUIET))
    for _ in range(3):
        machine.do(2, 0.1)
    (level,) = machine.pace.levels.values()
    before = dict(level.seconds)
    with pytest.raises(ZeroDivisionError), machine.pace.measured(2, 0.1):
        _ = 1 / 0
    assert level.seconds == before


def test_threads_of_python_share_one() -> None:
    pace, wrong = Pace(others=Others()), list[BaseException]()

    def work(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(3000):
                with pace.measured(8, draw.choice((1.0, 64.0))) as number:
                    assert number in {1, 2, 4, 8}
                    if draw.random() < 0.01:
                        time.sleep(0.0002)
        except BaseException as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert all(0 <= level.place < 4 for level in pace.levels.values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pace: pickle.loads(pickle.dumps(pace))])
def test_a_copy_knows_nothing_and_hears_of_others(copied: Callable[[Pace], Pace]) -> None:
    pace = Pace(alarms=False)
    with pace.measured(2, 1.0):
        pass
    other = copied(pace)
    assert (other.levels, other.alarms, other.others) == ({}, False, OTHERS)
    assert other.others is OTHERS
