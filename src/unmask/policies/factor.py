"""Fast-dLLM's factor rule (arXiv 2505.22618, section 3.3): confidences bound how many positions are committed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction


@dataclass(frozen=True)
class Factor(Policy):
    """Commits the n most confident positions of the block, n the largest with (n + 1)(1 - c_n) < ``f``, at least 1.

    Under this bound committing n positions at once agrees with committing them one by one (theorem 1). Two published
    programs are off by one: ``rank=last_too`` also commits the last masked position when it alone fails the rule
    (Fast-dLLM, dInfer); ``rank=last_not`` leaves one masked when none fails it (d2Cache).
    """

    name = "factor"
    paper = "arXiv 2505.22618"
    spans = True

    f: float = param(1.0, "bound on (n + 1)(1 - c_n); more commits more", ge=0, le=1000)
    block_length: int | None = blocks()
    rank: str = param(
        "exact",
        "the count as published in the paper, or as in the code of Fast-dLLM | d2Cache",
        choices=("exact", "last_too", "last_not"),
        hidden=True,
    )

    def ask(self, canvas: Canvas, state: None) -> Ask:
        block = canvas.block(self.block_length)
        return Ask(block, optional=block)

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        return Update(top(prediction.confidence, self._count(prediction.confidence)), prediction.token), None

    def _count(self, confidence: Tensor) -> Tensor:
        """``[B]`` positions to commit; as (n + 1)(1 - c_n) grows with n, those that pass come first."""
        ordered = confidence.sort(dim=1, descending=True).values
        n = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
        masks = (confidence > -torch.inf).sum(1)
        keeps = (n + 1) * (1 - ordered)
        count = (keeps <= self.f if self.rank == "last_too" else keeps < self.f).sum(1).clamp(min=1)
        if self.rank == "last_too":
            count = torch.where(count == masks - 1, masks, count)
        if self.rank == "last_not":
            count = torch.where(count == masks, (masks - 1).clamp(min=1), count)
        return count
