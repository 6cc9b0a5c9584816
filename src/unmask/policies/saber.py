"""Saber (arXiv 2510.18165): more positions as confidence grows, and re-masking after every forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import above, top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION


@dataclass(frozen=True)
class SaberState:
    """``[B, T]``: ``commit``, the confidence of each position's last commit (it stays when the position is re-masked;
    0: never committed), and ``last``, the probability of its token in the forward pass before (0: none).
    """

    commit: Tensor = field(metadata=PER_POSITION)
    last: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Saber(Policy):
    """Adaptive acceleration and backtracking.

    *Commit*: the positions above the mean confidence of all commits so far, at least the ``n`` most confident.
    *Re-mask*: the same forward pass scores the tokens at filled positions. Of k commits the max(1, k / ``mu``) tokens
    whose probability has fallen most are re-masked: fallen since their commit (``since=commit``, as published) or since
    the forward pass before (``before``, the code for LLaDA); the code for Dream takes the lowest probabilities
    (``nothing``). Both programs may re-mask tokens just committed.

    It ends: a forward pass re-masks fewer positions than it commits, and none once the block is full, so that a
    response of L takes at most L forward passes.
    """

    name = "saber"
    paper = "arXiv 2510.18165"
    remasks = True

    n: int = param(2, "least positions committed by a forward pass", ge=1)
    mu: float = param(8.0, "commits for each position re-masked", ge=1)
    since: str = param(
        "commit",
        "probabilities are compared with those at the commit | of the forward pass before | with nothing",
        choices=("commit", "before", "nothing"),
        hidden=True,
    )
    block_length: int | None = blocks(None)

    def init(self, canvas: Canvas, sampling: Sampling) -> SaberState:
        zero = torch.zeros(canvas.tokens.shape, dtype=torch.float64, device=canvas.tokens.device)
        return SaberState(zero, zero)

    def ask(self, canvas: Canvas, state: SaberState) -> Ask:
        block = canvas.block(self.block_length)
        return Ask(block, score=block & ~canvas.fixed)

    def decide(self, canvas: Canvas, prediction: Prediction, state: SaberState) -> tuple[Update, SaberState]:
        assert prediction.score is not None
        confidence, block = prediction.confidence, canvas.block(self.block_length)
        commits = (state.commit > 0).sum(1)
        threshold = torch.where(commits > 0, state.commit.sum(1) / commits, 1.0)  # at first the n most confident alone
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
        fall = fall.round(decimals=9)  # predictions that a cache reuses are equal: no rounding error may rank them
        remask = top(torch.where(filled, fall, -torch.inf), count)
        commit = torch.where(write, confidence, state.commit)
        return Update(write, prediction.token, remask), SaberState(commit, torch.where(block, now, 0.0))
