"""The two phases of SlowFast Sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.canvas import Canvas, Update
from ...core.pick import at_least, best, top
from ...core.protocols import Ask, Prediction, Sampling
from .exploration import SlowFastState, explore
from .settings import Settings


@dataclass(frozen=True)
class SlowFast(Settings):
    """Cycles of two phases over the current block: explore until a span is stable, then fill it (paper, algorithm 1).

    *Slow*: each forward pass commits the most confident position of [start, block end) and notes how far positions
    above ``tau_min`` reach. Once the last ``window`` of these candidates vary by less than ``sigma2``, or after
    ``k_max`` forward passes, their mean ends the span (equation 9). *Fast*: inside the span commit all that reach
    ``tau_high``, else the most confident one, until it is full; beyond it nothing is recomputed. The next cycle starts
    where the span ended.

    ``preset`` gives the parameters that are not given: ``paper`` as published, ``reference`` and ``reference_dream`` as
    the authors' code does it for LLaDA and for Dream.
    """

    name = "slowfast"
    paper = "arXiv 2506.10848"
    threshold = "tau_high"

    @property
    def reuses(self) -> bool:
        return self.suffix == "cached"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"} if self.signal == "entropy" else ())

    def init(self, canvas: Canvas, sampling: Sampling) -> SlowFastState:
        zero = torch.zeros_like(canvas.prompt)
        history = zero.double()[:, None].expand(-1, self.window).contiguous()
        seen = canvas.tokens.new_zeros(canvas.tokens.shape if self.signal == "kl" else (len(zero), 0)).double()
        return SlowFastState(zero - 1, zero, zero > 0, zero, zero - 1, history, history, seen, zero)

    def ask(self, canvas: Canvas, state: SlowFastState) -> Ask:
        state, start, high = self._here(canvas, state)
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
        state, start, high = self._here(canvas, state)
        slow = state.fast < 0
        explored = explore(self, canvas, prediction, state, start, high)
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

    def notes(self, canvas: Canvas, before: SlowFastState, after: SlowFastState) -> Mapping[str, Tensor]:
        """The phase; the span, which in the slow phase goes to the block's end; and there the ``candidate`` for its end
        (one behind the farthest position above ``tau_min``; -1 in forward passes that have none).
        """
        before, start, high = self._here(canvas, before)
        fast = before.fast >= 0
        candidate = torch.where(fast | before.settled, -1, after.ends[:, -1].long() + canvas.prompt)
        return {
            "slow": ~fast,
            "fast": fast,
            "start": start,
            "end": torch.where(fast, before.end, high),
            "candidate": candidate,
        }

    def _here(self, canvas: Canvas, state: SlowFastState) -> tuple[SlowFastState, Tensor, Tensor]:
        """The state, and ``[B]`` where the cycle starts and the block ends. A block that a wrapper has filled takes its
        cycle with it.
        """
        low, high = canvas.block_start(self.block_length), canvas.block_end(self.block_length)
        fresh = state.start < low
        state = replace(
            state,
            settled=state.settled & ~fresh,
            slow=torch.where(fresh, 0, state.slow),
            fast=torch.where(fresh, -1, state.fast),
        )
        return state, torch.where(fresh, low, state.start), high

    @staticmethod
    def _commit(confidence: Tensor, count: int, tau: float | None) -> Tensor:
        if tau is None:
            return top(confidence, count)
        sure = at_least(confidence, tau)
        if count == 1:
            return sure | best(confidence)
        return sure | top(confidence, count) & ~sure.any(1, keepdim=True)
