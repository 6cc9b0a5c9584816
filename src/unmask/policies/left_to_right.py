"""Left to right, the order that Adaptive Parallel Decoding starts from (arXiv 2506.00413, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class LeftToRight(Policy):
    """Commits the first ``k`` masks; positions ``lookahead`` or more behind the first leave the input."""

    name = "left_to_right"
    paper = "arXiv 2506.00413"
    left_to_right = True
    refuses = "text behind a gap: it goes from left to right and cannot look at what stands behind a mask"

    k: int = param(1, "positions committed by a forward", ge=1)
    lookahead: int | None = param(None, "positions from the first mask on that stay in the input; none: all", ge=1)

    def init(self, canvas: Canvas, sampling: Sampling) -> None:
        """No state."""

    def ask(self, canvas: Canvas, state: None) -> Ask:
        """The first masks, and what may be seen."""
        first = canvas.masked & (canvas.masked.cumsum(1) <= self.k)
        if self.lookahead is None:
            return Ask(first)
        near = canvas.position < (canvas.frontier + self.lookahead)[:, None]
        return Ask(first & near, visible=near)

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        """Commit what was asked."""
        return Update(prediction.confidence > -torch.inf, prediction.token), None
