"""WINO (arXiv 2507.18578): fill wide, verify every token against its context, take back what does not hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import above, best, top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling

_FIRST_ACCEPT = 30  # what the published code takes for the acceptances before a block's first forward
_SHARE, _LEAST, _MOST = 0.7, 5, 20  # most commits of a forward: this share of the open masks, within these bounds


@dataclass(frozen=True)
class WinoState:
    """``[B]``: ``start`` of the current block, positions ``accepted`` by the last forward in it."""

    start: Tensor
    accepted: Tensor


@dataclass(frozen=True)
class Wino(Policy):
    """Each forward drafts and verifies the current block.

    *Draft*: commit what is more confident than ``tau_in``, at least one and at most .7 of the open masks (5 to 20).
    *Verify*, when more than one was committed: tokens committed before, to which their probes (the same position,
    masked) give less than ``tau_out``, become masks again; never as many as the forward before has committed, so that
    decoding advances. Costs ``block_length`` more positions per forward.
    """

    name = "wino"
    paper = "arXiv 2507.18578"
    threshold = "tau_in"
    remasks = True

    tau_in: float = param(0.6, "a token above this confidence is drafted", ge=0, le=2)
    tau_out: float = param(0.9, "a token that its probe gives less than this is taken back", ge=0, le=1)
    block_length: int = param(128, "positions per block", ge=1)

    @property
    def probes(self) -> int:
        """One for each position of the block."""
        return self.block_length

    def init(self, canvas: Canvas, sampling: Sampling) -> WinoState:
        """Before the first block."""
        return WinoState(torch.full_like(canvas.prompt, -1), torch.zeros_like(canvas.prompt))

    def ask(self, canvas: Canvas, state: WinoState) -> Ask:
        """The current block, and probes for all of it that was not given."""
        block = canvas.block(self.block_length)
        return Ask(block, probe=block & ~canvas.fixed)

    def decide(self, canvas: Canvas, prediction: Prediction, state: WinoState) -> tuple[Update, WinoState]:
        """Draft, and verify the tokens that were there."""
        assert prediction.probe is not None
        confidence, start = prediction.confidence, canvas.block_start(self.block_length)
        before = torch.where(start == state.start, state.accepted, _FIRST_ACCEPT)
        open_ = confidence > -torch.inf
        limit = (open_.sum(1).double() * _SHARE).long().clamp(_LEAST, _MOST)
        sure = above(confidence, self.tau_in)
        write = torch.where((sure.sum(1) > limit)[:, None], top(confidence, limit), sure | best(confidence))
        accepted = write.sum(1)
        placed = canvas.block(self.block_length) & ~open_ & ~canvas.fixed
        doubt = torch.where(placed, -prediction.probe, -torch.inf)
        wrong = placed & (prediction.probe < self.tau_out) & (accepted > 1)[:, None]
        worst = top(doubt, before - 1) & (accepted > 1)[:, None]
        remask = torch.where((wrong.sum(1) >= before)[:, None], worst, wrong)
        return Update(write, prediction.token, remask), replace(state, start=start, accepted=accepted)
