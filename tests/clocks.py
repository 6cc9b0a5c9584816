"""A clock that stands still but where a test moves it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from unmask.engine import scheduler


@dataclass
class Clock:
    """``now`` in seconds."""

    now: float = 1000.0

    def read(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def ticks(monkeypatch, seconds: float = 1.0) -> Clock:
    """The engine's clock: every forward pass takes so many seconds, nothing else takes any."""
    clock, real = Clock(), scheduler.step

    def step(*given, **named):
        clock.wait(seconds)
        return real(*given, **named)

    monkeypatch.setattr(scheduler, "time", SimpleNamespace(perf_counter=clock.read))
    monkeypatch.setattr(scheduler, "step", step)
    return clock
