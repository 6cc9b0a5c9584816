"""WINO (arXiv 2507.18578): commit many positions, verify each token in its new context, re-mask what fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import above, best, top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling

_FIRST_ACCEPT = 30  # what the published code takes for the commits before a block's first forward pass
_SHARE, _LEAST, _MOST = 0.7, 5, 20  # most commits of a forward pass: this share of the masked, within these bounds


@dataclass(frozen=True)
class WinoState:
    """``[B]``: ``start`` of the current block, positions committed by the last forward pass in it (``accepted``)."""

    start: Tensor
    accepted: Tensor


@dataclass(frozen=True)
class Wino(Policy):
    """Each forward pass drafts and verifies the current block.

    *Draft*: commit what is more confident than ``tau_in``, at least one and at most .7 of the masked positions (5 to
    20). *Verify*, when more than one was committed: re-mask the tokens of earlier forward passes to which their probes
    (the same position, masked) give less than ``tau_out``; always fewer than the forward pass before has committed, so
    that decoding advances. Costs up to ``block_length`` more positions per forward pass.
    """

    name = "wino"
    paper = "arXiv 2507.18578"
    threshold = "tau_in"
    remasks = True

    tau_in: float = param(0.6, "confidence above which a token is committed", ge=0, le=2)
    tau_out: float = param(0.9, "a token is re-masked when its probe gives it less", ge=0, le=1)
    block_length: int = param(128, "positions per block", ge=1)

    @property
    def probes(self) -> int:
        return self.block_length

    def init(self, canvas: Canvas, sampling: Sampling) -> WinoState:
        return WinoState(torch.full_like(canvas.prompt, -1), torch.zeros_like(canvas.prompt))

    def ask(self, canvas: Canvas, state: WinoState) -> Ask:
        block = canvas.block(self.block_length)
        return Ask(block, probe=block & ~canvas.fixed)

    def decide(self, canvas: Canvas, prediction: Prediction, state: WinoState) -> tuple[Update, WinoState]:
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
