"""SDAR's schedules of a block (arXiv 2510.06303): so many forward passes, which share its positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import above, top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class SdarState:
    """``[B]``: ``start`` of the current block (-1: none yet), forward passes in it so far (``step``), and rows whose
    end of text is committed ``late``.
    """

    start: Tensor
    step: Tensor
    late: Tensor


@dataclass(frozen=True)
class Sdar(Policy):
    """Fills each block in ``steps`` forward passes, which share its positions evenly, the first ones taking one more
    where they do not divide.

    *static* commits the most confident ones of this number; *dynamic* all above ``tau`` if these are at least as many,
    else as *static* does; *sequential* the next ones from the left, with ``late_eos`` ends of text behind all others.
    LLaDA2.0 decodes by *dynamic* too.
    """

    name = "sdar"
    paper = "arXiv 2510.06303"
    threshold = "tau"

    schedule: str = param(
        "dynamic", "which positions a forward pass commits", choices=("dynamic", "static", "sequential")
    )
    tau: float = param(0.9, "dynamic: confidence above which a position is committed", ge=0, le=2)
    steps: int | None = param(None, "forward passes of a block; none: one for each of its positions", ge=1)
    block_length: int | None = param(
        None, "positions per block; none: as the model, or where it has no blocks the whole response", ge=1
    )

    def init(self, canvas: Canvas, sampling: Sampling) -> SdarState:
        zero = torch.zeros_like(canvas.prompt)
        return SdarState(zero - 1, zero, zero.bool() if sampling.late_eos is None else sampling.late_eos)

    def ask(self, canvas: Canvas, state: SdarState) -> Ask:
        return Ask(canvas.block(self.block_length))

    def decide(self, canvas: Canvas, prediction: Prediction, state: SdarState) -> tuple[Update, SdarState]:
        confidence, start = prediction.confidence, canvas.block_start(self.block_length)
        step = torch.where(start == state.start, state.step, 0)
        quota = self._quota(canvas, step).clamp(min=1)
        if self.schedule == "sequential":
            waits = canvas.is_eos(prediction.token) & state.late[:, None]
            turn = canvas.position + waits * confidence.shape[1]
            confidence = torch.where(confidence > -torch.inf, -turn.double(), -torch.inf)
        write = top(confidence, quota)
        if self.schedule == "dynamic":
            sure = above(confidence, self.tau)
            write = torch.where((sure.sum(1) >= quota)[:, None], sure, write)
        return Update(write, prediction.token), replace(state, start=start, step=step + 1)

    def _quota(self, canvas: Canvas, step: Tensor) -> Tensor:
        """``[B]`` positions that a block's forward pass number ``step`` commits at the least."""
        size = canvas.spec.block or canvas.length - canvas.prompt
        if self.block_length is not None:
            size = torch.as_tensor(size, device=step.device).clamp(max=self.block_length)
        steps = size if self.steps is None else self.steps
        return size // steps + (step < size % steps)
