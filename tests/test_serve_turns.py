"""The event loop and the engine's thread take turns: what is told when, and that neither waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from unmask.server import turns as made
from unmask.server.turns import Turns, Waiting

LONG = 30.0  # seconds; a test that waits for so long has failed


class Loop:
    """An event loop in a thread of its own; the test is the engine's."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.loop = asyncio.SelectorEventLoop(Waiting(self.turns))
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def call(self, work: Callable[[], None]) -> None:
        """As a client's bytes would: nobody counts it."""
        self.loop.call_soon_threadsafe(work)

    def tell(self, work: Callable[[], None]) -> None:
        """As the engine does."""
        self.loop.call_soon_threadsafe(self.turns.telling(work))

    def settle(self) -> None:
        """Wait until the loop has nothing to do."""
        self.tell(lambda: None)
        assert self.turns._idle.wait(LONG)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LONG)
        self.loop.close()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setattr(made, "_LONGEST", LONG)
    monkeypatch.setattr(made, "_MOST", LONG)
    loop = Loop()
    loop.settle()
    yield loop
    loop.close()


def test_what_comes_during_a_forward_pass_is_done_between_two(loop: Loop) -> None:
    seen: list[str] = []
    with loop.turns.taken():
        loop.call(partial(seen.append, "came"))
        while loop.turns._idle.is_set():
            pass
        assert seen == []
    loop.turns.give()
    assert seen == ["came"]


def test_the_engine_waits_until_what_it_has_told_is_done(loop: Loop) -> None:
    seen: list[int] = []

    def work(left: int) -> None:
        seen.append(left)
        if left:
            loop.loop.call_soon(work, left - 1)

    with loop.turns.taken():
        pass
    loop.tell(partial(work, 20))
    loop.turns.give()
    assert seen == list(range(20, -1, -1))


def test_work_in_another_thread_is_waited_for(loop: Loop) -> None:
    seen, begin = list[str](), threading.Event()

    async def plan() -> None:
        with loop.turns.elsewhere():
            await asyncio.to_thread(begin.wait, LONG)
        seen.append("planned")

    loop.tell(lambda: seen.append(str(asyncio.ensure_future(plan()).done())))
    threading.Timer(0.05, begin.set).start()
    loop.turns.give()
    assert seen == ["False", "planned"]


def test_a_long_forward_pass_does_not_stop_the_loop(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "_LONGEST", 0.01)
    done = threading.Event()
    with loop.turns.taken():
        loop.call(done.set)
        assert done.wait(LONG)
        done.clear()
        loop.call(lambda: loop.loop.call_later(0.01, done.set) and None)
        assert done.wait(LONG)


def test_a_busy_loop_does_not_stop_the_engine(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "_MOST", 0.01)
    end = threading.Event()
    loop.tell(lambda: end.wait(LONG) and None)
    loop.turns.give()
    assert not loop.turns._idle.is_set()
    end.set()


def test_of_another_loop_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray and the tests of the application bring a loop of their own."""
    monkeypatch.setattr(made, "_MOST", LONG)
    turns, seen = Turns(), list[str]()

    async def main() -> None:
        with turns.taken():
            asyncio.get_running_loop().call_soon(turns.telling(partial(seen.append, "heard")))
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(turns.telling(partial(seen.append, "more")))
        await asyncio.to_thread(turns.give)

    asyncio.run(asyncio.wait_for(main(), LONG / 2))
    assert seen == ["heard", "more"]
