"""Saber (arXiv 2510.18165): faster as the model gets surer, with a step back after every forward."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import above, top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION


@dataclass(frozen=True)
class SaberState:
    """``[B, T]``: ``commit``, confidence of each position's last commit (kept when it is taken back; 0: never
    committed), and ``last``, that of its token in the forward before (0: none).
    """

    commit: Tensor = field(metadata=PER_POSITION)
    last: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Saber(Policy):
    """Adaptive acceleration and backtracking.

    *Draft*: commit what is more confident than the mean confidence of all commits so far, at least the ``n`` best.
    *Step back*: the network's outputs at filled positions score the tokens there. After k drafts the
    max(1, k / ``mu``) tokens whose scores have fallen most become masks again: since their commit (``since=commit``,
    as published), or since the forward before (``before``, the code for LLaDA); the code for Dream takes the lowest
    scores (``nothing``). Both programs let tokens just committed be among these.

    It ends: no step back takes as many as the forward has committed, and none is made once the block is full, so that
    every forward fills at least one position and a response of L takes at most L forwards.
    """

    name = "saber"
    paper = "arXiv 2510.18165"
    remasks = True

    n: int = param(2, "positions committed at least", ge=1)
    mu: float = param(8.0, "of so many drafts one is taken back", ge=1)
    since: str = param(
        "commit",
        "scores are compared with: the confidence at the commit | the forward before | nothing, the lowest go",
        choices=("commit", "before", "nothing"),
    )
    block_length: int | None = param(None, "positions per block; none: the whole response is one block", ge=1)

    def init(self, canvas: Canvas, sampling: Sampling) -> SaberState:
        """Nothing committed."""
        zero = torch.zeros(canvas.tokens.shape, dtype=torch.float64, device=canvas.tokens.device)
        return SaberState(zero, zero)

    def ask(self, canvas: Canvas, state: SaberState) -> Ask:
        """The current block, and scores of what it holds."""
        block = canvas.block(self.block_length)
        return Ask(block, score=block & ~canvas.fixed)

    def decide(self, canvas: Canvas, prediction: Prediction, state: SaberState) -> tuple[Update, SaberState]:
        """Draft, and step back."""
        assert prediction.score is not None
        confidence, block = prediction.confidence, canvas.block(self.block_length)
        commits = (state.commit > 0).sum(1)
        threshold = torch.where(commits > 0, state.commit.sum(1) / commits, 1.0)  # at first only the n best
        sure = above(confidence, threshold)
        write = torch.where((sure.sum(1) < self.n)[:, None], top(confidence, self.n), sure)
        drafts, after = write.sum(1), canvas.apply(Update(write, prediction.token))
        now = torch.where(confidence > -torch.inf, confidence, prediction.score)
        filled = block & (write | ~canvas.masked) & ~canvas.fixed
        if self.since == "commit":
            fall, filled = state.commit - now, filled & ~write
        else:
            fall = state.last - now if self.since == "before" else -now
        count = torch.minimum((drafts / self.mu).ceil().long().clamp(min=1), drafts - 1)
        count = torch.where((after.masked & block).any(1), count, 0)
        fall = fall.round(decimals=9)  # answers that a cache has kept are equal: no rounding error may rank them
        remask = top(torch.where(filled, fall, -torch.inf), count)
        commit = torch.where(write, confidence, state.commit)
        return Update(write, prediction.token, remask), SaberState(commit, torch.where(block, now, 0.0))
