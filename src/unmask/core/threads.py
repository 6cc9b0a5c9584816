"""How many threads an operation on the CPU is worth, and how long they wait for each other.

The threads of an operation meet at its end, and wait there by spinning. Where another process keeps one of the cores
busy, each operation then waits until the system lets the last thread run: small operations become many times slower.
So operations run by one thread unless they are large enough to gain by more, those that are run by as many as turn out
to be fastest (:mod:`unmask.core.pace`), and programs bound the waiting.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

from .pace import Pace

WORK = 75e6  # multiplications and additions per layer that one more thread is worth; measured, benchmarks/threads.py
_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the user's choice of a number
_state = threading.local()
_lock = threading.Lock()
_inside, _own = 0, 0  # threads of Python that are in for_work(), and the number torch had before the first of them
_fixed = False


def fix(count: int) -> None:
    """Use this number of threads for everything, in this process: the user has chosen it."""
    global _fixed  # noqa: PLW0603
    _fixed = True
    torch.set_num_threads(count)


def count(work: float, most: int) -> int:
    """Threads for some work: one for every ``WORK``, ``most`` at most.

    Powers of two, so that compiled code, which is made for a number of threads, is made a few times only.
    """
    worth = max(1, min(most, int(work / WORK)))
    return worth if worth == most else 1 << worth.bit_length() - 1


@contextmanager
def for_work(work: float, pace: Pace | None = None) -> Iterator[None]:
    """Use as many threads as some work is worth, or fewer; inside another, what the inner one says counts.

    Nothing changes where the user has chosen a number: by ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS``, by :func:`fix`,
    or by ``torch.set_num_threads``, unless that is what torch takes by itself. Otherwise this number is the most.

    Args:
        work: multiplications (each with its addition) of one layer: positions x weights of a layer.
        pace: of this kind of work: fewer threads are used while they are faster. None: always what it is worth.
    """
    if _fixed or any(os.environ.get(name) for name in _CHOSEN):
        yield
        return
    outer: int | None = getattr(_state, "most", None)
    before = _entered() if outer is None else torch.get_num_threads()
    most = before if outer is None else outer
    try:
        if most not in _defaults():
            yield
            return
        _state.most = most
        worth = count(work, most)
        try:
            with pace.measured(worth, work) if pace and worth > 1 else nullcontext(worth) as number:
                torch.set_num_threads(number)
                yield
        finally:
            torch.set_num_threads(before)
            _state.most = outer
    finally:
        if outer is None:
            _left()


def _entered() -> int:
    """The number of a thread of Python that has none in use yet. A new one begins with what another has set last."""
    global _inside, _own  # noqa: PLW0603
    with _lock:
        mine = torch.get_num_threads()
        if not _inside:
            _own = mine
        _inside += 1
        known = getattr(_state, "known", False)
        _state.known = True
        return mine if known else max(mine, _own)


def _left() -> None:
    global _inside  # noqa: PLW0603
    with _lock:
        _inside -= 1


@lru_cache(maxsize=1)
def _defaults() -> frozenset[int]:
    """The numbers that torch takes by itself: processors that the process may use, with and without hyper-threads."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return frozenset({len(mine), _cores(mine, Path("/sys/devices/system/cpu"))})


def _cores(processors: set[int], root: Path) -> int:
    """Cores among processors; each processor counts as one where the system does not tell."""
    found = set()
    for one in processors:
        file = root / f"cpu{one}" / "topology" / "thread_siblings_list"
        found.add(re.split("[,-]", file.read_text())[0] if file.exists() else str(one))
    return len(found)
