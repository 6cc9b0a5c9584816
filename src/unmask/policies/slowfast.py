"""SlowFast Sampling (arXiv 2506.10848): explore slowly until the span to decode is certain, then fill it fast."""

from __future__ import annotations

from dataclasses import Field, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import at_least, best, top
from ..core.protocols import Ask, PolicyBase, Prediction, Sampling

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "tau_min": 0.1,
        "tau_high": 0.85,
        "k_max": 8,
        "suffix": "cached",
        "slow_commit": "top",
        "leave": "stable",
        "endpoint": "mean",
        "variance": "population",
    },
    "reference": {
        "tau_min": 0.3,
        "tau_high": 0.9,
        "k_max": 6,
        "suffix": "truncate",
        "slow_commit": "threshold",
        "leave": "k_max",
        "endpoint": "last",
        "variance": "population",
    },
    "reference_dream": {
        "tau_min": 0.1,
        "tau_slow": 0.8,
        "tau_high": 0.9,
        "k_max": 6,
        "suffix": "truncate",
        "slow_commit": "threshold",
        "leave": "k_max",
        "endpoint": "last_or_rounded",
        "variance": "sample",
    },
}
BOUNDS = {"endpoint": 1.0, "entropy": 1e-3, "kl": 1e-2}


@dataclass(frozen=True)
class SlowFastState:
    """One value per row unless said otherwise.

    Attributes:
        start: ``[B]`` first position of the cycle, -1 before a block's first cycle.
        end: ``[B]`` one behind the span, meaningful once ``settled``.
        settled: ``[B]`` the stability test has passed in this cycle.
        slow: ``[B]`` exploratory forwards made in this cycle.
        fast: ``[B]`` accelerated forwards made in this cycle; -1 in the exploratory phase.
        ends: ``[B, window]`` last candidates for the end of the span, newest last.
        signal: ``[B, window]`` last values of the convergence signal.
        confidence: ``[B, T]`` of the forward before (for the signal ``kl``); 0 where unknown.
        skipped: ``[B]`` forwards left out before the next one.
    """

    start: Tensor
    end: Tensor
    settled: Tensor
    slow: Tensor
    fast: Tensor
    ends: Tensor
    signal: Tensor
    confidence: Tensor
    skipped: Tensor


@dataclass(frozen=True)
class SlowFast(PolicyBase):
    """Cycles of two phases over the current block (paper, algorithm 1).

    *Slow*: each forward commits the ``k_slow`` most confident positions of [start, block end) and notes the farthest
    one above ``tau_min``. Once the last ``window`` of these vary by less than ``sigma2`` (or after ``k_max`` forwards)
    their mean ends the span (eq. 9). *Fast*: inside the span commit all that reach ``tau_high``, else the ``k_fast``
    best, until it is full; beyond the span nothing is recomputed. The next cycle starts where the span ended.

    ``preset`` fills what is not given: ``paper`` as published, ``reference`` and ``reference_dream`` as the authors'
    code does it for LLaDA and for Dream.
    """

    name = "slowfast"
    paper = "arXiv 2506.10848"
    threshold = "tau_high"

    preset: str = param("paper", "the defaults of the others", choices=tuple(PRESETS))
    tau_min: float = param(None, "a position this confident may end the span (paper .1, reference .3)", ge=0, le=2)
    tau_high: float = param(
        None, "inside the span, commit what is this confident (paper .85, reference .9)", ge=0, le=2
    )
    tau_slow: float = param(
        None,
        "the same in the slow phase, where that commits by threshold (reference_dream .8, else tau_high)",
        ge=0,
        le=2,
    )
    k_max: int = param(None, "most exploratory forwards of a cycle (paper 8, reference 6)", ge=1)
    window: int = param(2, "candidates that the stability test looks at", ge=1, le=64)
    sigma2: float = param(
        None,
        "the signal is stable below this; its unit is the signal's "
        "(endpoint 1.0 positions^2, entropy .001 nats^2, kl .01 nats)",
        gt=0,
    )
    k_slow: int = param(1, "positions committed by an exploratory forward", ge=1)
    k_fast: int = param(1, "positions committed when none in the span reaches tau_high", ge=1)
    block_length: int | None = param(None, "positions per block; none: the whole response is one block", ge=1)
    suffix: str = param(
        None,
        "beyond the span: leave the input | keep cached keys and values | recompute (paper cached, reference truncate)",
        choices=("truncate", "cached", "full"),
    )
    signal: str = param(
        "endpoint",
        "what must be stable: variance of the endpoint or of the mean entropy, or KL "
        "divergence of the confidences from the forward before",
        choices=tuple(BOUNDS),
    )
    force_after: int | None = param(None, "leave the slow phase after this many forwards, without a test", ge=1)
    slow_commit: str = param(
        None,
        "slow phase commits the k_slow best, or like the fast phase (paper top, reference threshold)",
        choices=("top", "threshold"),
    )
    leave: str = param(
        None,
        "slow phase ends when stable, or always takes k_max forwards (paper stable, reference k_max)",
        choices=("stable", "k_max"),
    )
    endpoint: str = param(
        None,
        "the span ends at the mean of the candidates, or at the last where stable, else at their mean, rounded down or "
        "to the nearest (paper mean, reference last, reference_dream last_or_rounded)",
        choices=("mean", "last", "last_or_rounded"),
    )
    variance: str = param(
        None,
        "stable is a variance over the window below sigma2, or a sample variance up to it (reference_dream sample)",
        choices=("population", "sample"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in self._given().items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)

    def _given(self) -> dict[str, Any]:
        """What the preset, the signal and the other values fill in."""
        preset = PRESETS[self.preset]
        high = preset["tau_high"] if self.tau_high is None else self.tau_high
        return {"tau_slow": high, "sigma2": BOUNDS[self.signal], **preset}

    def _default(self, field: Field[Any]) -> Any:
        return self._given().get(field.name, field.default)

    @property
    def needs(self) -> frozenset[str]:
        """Entropies for the signal of that name."""
        return frozenset({"entropy"} if self.signal == "entropy" else ())

    def init(self, canvas: Canvas, sampling: Sampling) -> SlowFastState:
        """Before the first block."""
        zero = torch.zeros_like(canvas.prompt)
        history = zero.double()[:, None].expand(-1, self.window).contiguous()
        seen = canvas.tokens.new_zeros(canvas.tokens.shape if self.signal == "kl" else (len(zero), 0)).double()
        return SlowFastState(zero - 1, zero, zero > 0, zero, zero - 1, history, history, seen, zero)

    def ask(self, canvas: Canvas, state: SlowFastState) -> Ask:
        """Slow: from the cycle to the end of the block. Fast: the span, cut off from the second forward on."""
        start, high = self._bounds(canvas, state)
        fast, later = state.fast >= 0, state.fast >= 1
        stop = torch.where(fast, state.end, high)[:, None]
        window = canvas.valid & (canvas.position >= start[:, None]) & (canvas.position < stop) & ~canvas.done[:, None]
        inside = ~later[:, None] | (canvas.position < state.end[:, None])
        return Ask(
            window,
            visible=inside | canvas.fixed if self.suffix == "truncate" else None,
            stale=~inside if self.suffix == "cached" else None,
            skipped=state.skipped,
        )

    def decide(self, canvas: Canvas, prediction: Prediction, state: SlowFastState) -> tuple[Update, SlowFastState]:
        """Commit, and move on to the next phase, cycle or block."""
        start, high = self._bounds(canvas, state)
        slow = state.fast < 0
        explored = self._explore(canvas, prediction, state, start, high)
        write = torch.where(
            slow[:, None],
            self._commit(
                prediction.confidence, self.k_slow, self.tau_slow if self.slow_commit == "threshold" else None
            ),
            self._commit(prediction.confidence, self.k_fast, self.tau_high),
        )
        left = canvas.masked & ~write & (canvas.position >= start[:, None])
        limit = self.force_after or self.k_max
        leaves = (explored.slow >= limit) | (explored.settled if self.leave == "stable" else False)
        fast = torch.where(slow, leaves.long() - 1, state.fast + 1)
        block_left = (left & (canvas.position < high[:, None])).any(1)
        span_left = (left & (canvas.position < explored.end[:, None])).any(1)
        over = (fast >= 0) & ~span_left | ~block_left
        skipped = torch.where(slow & ~block_left, limit - explored.slow, 0) if self.leave == "k_max" else state.skipped
        after = replace(
            explored,
            start=torch.where(block_left, torch.where(over, explored.end, start), -1),
            settled=explored.settled & ~over,
            slow=torch.where(over, 0, explored.slow),
            fast=torch.where(over, -1, fast),
            skipped=skipped,
        )
        return Update(write, prediction.token), after

    def _bounds(self, canvas: Canvas, state: SlowFastState) -> tuple[Tensor, Tensor]:
        """``[B]`` where the cycle starts and where the block ends."""
        low = canvas.block_start(self.block_length)
        high = canvas.length if self.block_length is None else torch.minimum(low + self.block_length, canvas.length)
        return torch.where(state.start < 0, low, state.start), high

    @staticmethod
    def _commit(confidence: Tensor, count: int, tau: float | None) -> Tensor:
        if tau is None:
            return top(confidence, count)
        sure = at_least(confidence, tau)
        if count == 1:
            return sure | best(confidence)
        return sure | top(confidence, count) & ~sure.any(1, keepdim=True)

    def _explore(
        self, canvas: Canvas, prediction: Prediction, state: SlowFastState, start: Tensor, high: Tensor
    ) -> SlowFastState:
        """The state with this forward's candidate noted, for rows in the slow phase whose span is not settled."""
        confidence, slow = prediction.confidence, state.fast < 0
        looking = slow & ~state.settled
        step = state.slow + slow
        far = torch.where(at_least(confidence, self.tau_min), canvas.position + 1, 0).amax(1)
        candidate = torch.minimum(torch.where(far > 0, far, start + 1), high).double()
        ends = torch.where(looking[:, None], _push(state.ends, candidate), state.ends)
        signal, seen = self._signal(prediction, state, ends, step)
        limit = self.force_after or self.k_max
        stable = (step >= self.window) & self._stable(signal)
        if self.force_after is not None:
            stable = torch.zeros_like(stable)
        settles = looking & (stable | (step >= limit))
        known = torch.arange(self.window, device=step.device) >= self.window - step[:, None]
        mean = (ends * known).sum(1) / known.sum(1).clamp(min=1)
        nearest = (mean - canvas.prompt).round() + canvas.prompt  # halves to the even number of response positions
        mean = nearest if self.endpoint == "last_or_rounded" else mean.floor()
        end = mean if self.endpoint == "mean" else torch.where(stable, candidate, mean)
        return replace(
            state,
            end=torch.where(settles, end.long(), state.end),
            settled=state.settled | settles,
            slow=step,
            ends=ends,
            signal=signal,
            confidence=seen,
        )

    def _stable(self, history: Tensor) -> Tensor:
        """``[B]`` the variance over the history, or the newest value (kl), against ``sigma2``."""
        if self.signal == "kl":
            return history[:, -1] < self.sigma2
        if self.variance == "sample":
            return history.var(1) <= self.sigma2
        return history.var(1, correction=0) < self.sigma2

    def _signal(
        self, prediction: Prediction, state: SlowFastState, ends: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The history ``[B, window]`` whose spread tells stability, and the confidences to remember."""
        if self.signal == "endpoint":
            return ends, state.confidence
        asked = prediction.confidence > -torch.inf
        if prediction.entropy is not None:
            value = (prediction.entropy * asked).sum(1).double() / asked.sum(1).clamp(min=1)
            return _push(state.signal, value), state.confidence
        now = torch.where(asked, prediction.confidence, 0.0)
        both = asked & (state.confidence > 0)
        p, q = _normalised(now, both), _normalised(state.confidence, both)
        value = torch.where(both, p * (p / q).log(), 0.0).sum(1)
        return _push(state.signal, torch.where(step > 1, value, torch.inf)), now


def _push(history: Tensor, value: Tensor) -> Tensor:
    return torch.cat([history[:, 1:], value[:, None]], 1)


def _normalised(value: Tensor, mask: Tensor) -> Tensor:
    kept = torch.where(mask, value, 0.0)
    return torch.where(mask, kept / kept.sum(1, keepdim=True), 1.0)
