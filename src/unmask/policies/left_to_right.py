"""Left to right, the baseline that Adaptive Parallel Decoding starts from (arXiv 2506.00413, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction


@dataclass(frozen=True)
class LeftToRight(Policy):
    """Commits the first ``k`` masked positions; those ``lookahead`` or more behind the first leave the input."""

    name = "left_to_right"
    paper = "arXiv 2506.00413"
    left_to_right = True
    refuses = "text behind a gap: it commits from left to right and cannot use what stands behind a masked position"

    k: int = param(1, "positions committed by a forward pass", ge=1)
    lookahead: int | None = param(None, "positions from the first masked one on that are in the input; none: all", ge=1)

    def ask(self, canvas: Canvas, state: None) -> Ask:
        first = canvas.masked & (canvas.masked.cumsum(1) <= self.k)
        if self.lookahead is None:
            return Ask(first)
        near = canvas.position < (canvas.frontier + self.lookahead)[:, None]
        return Ask(first & near, visible=near)

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        return Update(prediction.confidence > -torch.inf, prediction.token), None
