"""Parallel iterative refinement (GMLM, PaDIR, arXiv 2407.21046): predict all, reject some, predict these again."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import best, top
from ..core.policy import Policy
from ..core.predict import uniform
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION

_FIRST = 0.5  # of the positions are rejected where nothing can be compared with yet


@dataclass(frozen=True)
class RefineState:
    """``[B]``: ``start`` of the current block, iterations in it (``done``), ``seed``, forward passes (``count``);
    ``before [B, T]`` the tokens that the last iteration has predicted, -1 where none was.
    """

    start: Tensor
    done: Tensor
    seed: Tensor
    count: Tensor
    before: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Refine(Policy):
    """Predicts all masked positions at once, keeps what the ``rejecter`` does not reject, and masks the rest again.

    The rejecter marks, of all positions of the block: ``share`` the least probable share of them, ``count`` so many of
    them, ``random`` a random share (GMLM's resampling), ``disagreement`` those predicted otherwise than in the
    iteration before (the first time the less probable half), ``nothing`` none. New tokens count with their confidence,
    those that stand with the probability that the network gives them in their place. After ``iterations``, or when an
    iteration predicts what the one before has, everything is kept. The paper trains a T5 for this; here the masked
    model serves, whose masks are the paper's initial tokens.
    """

    name = "refine"
    paper = "arXiv 2407.21046"
    remasks = True

    rejecter: str = param("share", "what is rejected", choices=("share", "count", "random", "disagreement", "nothing"))
    share: float = param(0.5, "share of the positions that `share` and `random` reject", gt=0, le=0.95)
    count: int = param(8, "positions that `count` rejects", ge=1)
    iterations: int = param(8, "forward passes per block", ge=1)
    block_length: int | None = blocks(None)

    def init(self, canvas: Canvas, sampling: Sampling) -> RefineState:
        zero = torch.zeros_like(canvas.prompt)
        return RefineState(zero - 1, zero, sampling.seed, zero, torch.full_like(canvas.tokens, -1))

    def ask(self, canvas: Canvas, state: RefineState) -> Ask:
        block = canvas.block(self.block_length)
        scored = None if self.rejecter in ("nothing", "random") else self._standing(canvas)
        return Ask(block, score=scored)

    def _standing(self, canvas: Canvas) -> Tensor:
        """``[B, T]`` positions of the block that this policy has filled."""
        return canvas.block(self.block_length) & canvas.response & ~canvas.masked & ~canvas.fixed

    def decide(self, canvas: Canvas, prediction: Prediction, state: RefineState) -> tuple[Update, RefineState]:
        fresh = prediction.confidence > -torch.inf
        start = canvas.block_start(self.block_length)
        new = start != state.start
        done = torch.where(new, 0, state.done)
        before = torch.where(new[:, None], -1, state.before)
        changed = fresh & (prediction.token != before)
        rejected = self._rejected(canvas, prediction, fresh, changed, done, state)
        last = (done + 1 >= self.iterations) | ~changed.any(1)
        rejected = rejected & ~last[:, None]
        write = fresh & ~rejected
        write = write | (best(prediction.confidence) & ~write.any(1, keepdim=True))
        after = RefineState(start, done + 1, state.seed, state.count + 1, torch.where(fresh, prediction.token, before))
        return Update(write, prediction.token, rejected & ~fresh), after

    def _rejected(
        self, canvas: Canvas, prediction: Prediction, fresh: Tensor, changed: Tensor, done: Tensor, state: RefineState
    ) -> Tensor:
        """``[B, T]`` the positions that the rejecter marks, new tokens and standing ones."""
        if self.rejecter == "nothing":
            return torch.zeros_like(fresh)
        standing = self._standing(canvas)
        value = prediction.confidence
        if prediction.score is not None:
            value = torch.where(fresh, value, prediction.score)
        every = fresh | standing
        if self.rejecter == "random":
            value = uniform(state.seed, torch.full_like(done, -3), state.count, fresh.shape[1])
        worst = torch.where(every, -value, -torch.inf)
        size = every.sum(1)
        if self.rejecter == "disagreement":
            half = top(worst, (size.double() * _FIRST).long())
            return torch.where((done == 0)[:, None], half, changed)
        limit = (size.double() * self.share).long()
        return top(worst, torch.full_like(limit, self.count) if self.rejecter == "count" else limit)
