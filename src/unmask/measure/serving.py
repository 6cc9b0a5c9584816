"""Requests that arrive one after the other, enter as others leave, and what entering and leaving cost."""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import RequestError
from ..engine.loop import Step
from .machine import peak, reset_peak
from .problems import Answer

if TYPE_CHECKING:
    from ..api import Model
    from .run import Setting

_ARRIVALS = re.compile(r"(?P<kind>poisson|fixed)\((?P<inside>[^()]+)\)|(?P<bare>[^()]+)")


@dataclass(frozen=True)
class Arrivals:
    """When requests arrive.

    Attributes:
        kind: ``max`` (all at once: each enters as soon as there is a place), ``poisson`` (independent of each other),
            or ``fixed`` (evenly spaced).
        rate: requests per second; 0 for ``max``.
    """

    kind: str
    rate: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """From ``max``, ``RATE``, ``poisson(RATE)`` or ``fixed(RATE)``; a bare rate is Poisson's.

        Raises:
            RequestError: something else, or a rate that is not above 0.
        """
        found = _ARRIVALS.fullmatch(text.strip())
        if text.strip() == "max":
            return cls("max")
        try:
            rate = float((found and (found["inside"] or found["bare"])) or "")
        except ValueError:
            rate = 0.0
        if not found or not 0 < rate < float("inf"):
            raise RequestError(
                f"arrivals must be max, or requests per second as 2.5, poisson(2.5) or fixed(2.5), got {text!r}"
            )
        return cls(found["kind"] or "poisson", rate)

    def __str__(self) -> str:
        return "max" if self.kind == "max" else f"{self.kind}({self.rate:g})"

    def times(self, n: int, seed: int) -> list[float]:
        """Seconds at which the ``n`` requests arrive, the same ones for the same arguments."""
        if self.kind == "max":
            return [0.0] * n
        draw, now = random.Random(f"arrivals {seed}"), 0.0
        found = []
        for _ in range(n):
            now += draw.expovariate(self.rate) if self.kind == "poisson" else 1 / self.rate
            found.append(now)
        return found


def served(
    lm: Model, setting: Setting, requests: Sequence[Any], what: str, first: int
) -> tuple[list[Answer], float, dict[str, Any]]:
    """Decode requests as they arrive.

    Args:
        lm: the model.
        setting: ``batch_size`` and ``arrivals`` of it.
        requests: with the ids 0, 1, ...
        what: what a request is, for messages.
        first: number of the first, for messages, and seed of the arrivals.

    Returns:
        An answer to each; seconds in the network; and ``moving_seconds``, in which requests entered and left. With
        arrivals also ``engine_seconds`` (without waiting for requests), ``latency`` (of each, from its arrival to its
        end), ``entered`` (steps in which a request entered), ``peak_bytes``, and of these steps alone
        ``entering_peak_bytes`` (None where nobody counts).
    """
    engine, device = lm.engine(setting.batch_size), lm.denoiser.network.device
    arrivals = Arrivals.parse(setting.arrivals) if setting.arrivals else None
    times = (arrivals or Arrivals("max")).times(len(requests), first)
    coming = deque(zip(times, requests, strict=True))
    answers, latency, inside = dict[int, Answer](), dict[int, float](), 0.0
    known, entered = set[Any](), 0
    peaks: dict[bool, list[int | None]] = {True: [], False: []}  # by whether a request entered
    began = time.perf_counter()
    while coming or engine.busy:
        now = time.perf_counter() - began
        while coming and coming[0][0] <= now:
            engine.add(coming.popleft()[1])
        if not engine.busy:
            time.sleep(coming[0][0] - now)
            continue
        counted = arrivals is not None and reset_peak(device)
        fresh = False
        for event in engine.step():
            if isinstance(event, Step):
                inside += event.model_seconds
                fresh = fresh or not known.issuperset(event.rows)
                known.update(event.rows)
                continue
            one, at = lm.result(event), event.request.id
            if one.error is not None:
                raise RequestError(f"{what} {first + at}: {one.error}")
            told = event.first_token_seconds or one.stats.seconds
            answers[at] = Answer(one.text, one.stats.nfe, one.stats.tokens, one.stats.positions, told)
            latency[at] = time.perf_counter() - began - times[at]
        entered += fresh
        if counted:
            peaks[fresh].append(peak(device))
    more: dict[str, Any] = {"moving_seconds": round(engine.moving, 5)}
    if arrivals is not None:
        more |= {
            "engine_seconds": round(engine.clock, 5),
            "latency": [round(latency[i], 4) for i in range(len(requests))],
            "entered": entered,
            "peak_bytes": _most([*peaks[True], *peaks[False]]),
            "entering_peak_bytes": _most(peaks[True]),
        }
    return [answers[i] for i in range(len(requests))], inside, more


def _most(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
