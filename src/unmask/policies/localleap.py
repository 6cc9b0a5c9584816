"""LocalLeap (arXiv 2510.07081): what stands near a confident prediction needs less confidence itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import at_least, best
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction


@dataclass(frozen=True)
class LocalLeap(Policy):
    """Commits what reaches ``tau``, and what reaches ``low`` within ``radius`` positions of that; the best in any case.

    Predictions that reach ``tau`` are anchors: around them the context is all but decided, and a forward pass that
    commits the anchor may as well commit its surroundings.
    """

    name = "localleap"
    paper = "arXiv 2510.07081"
    spans = True
    threshold = "tau"

    tau: float = param(0.9, "confidence from which a position is committed and is an anchor", ge=0, le=2)
    low: float = param(0.75, "confidence that is enough near an anchor", ge=0, le=2)
    radius: int = param(4, "positions on either side of an anchor that are near it; 0: none", ge=0, le=1 << 16)
    block_length: int | None = blocks()

    def ask(self, canvas: Canvas, state: None) -> Ask:
        block = canvas.block(self.block_length)
        return Ask(block, cell=canvas.cell(self.block_length), optional=block)

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        confidence = prediction.confidence
        anchors = at_least(confidence, self.tau)
        write = anchors | best(confidence) | _around(anchors, self.radius) & at_least(confidence, self.low)
        return Update(write, prediction.token), None


def _around(anchors: Tensor, radius: int) -> Tensor:
    """``[B, T]`` positions at most ``radius`` away from an anchor."""
    many = F.pad(anchors.cumsum(1), (radius + 1, radius))
    many[:, many.shape[1] - radius :] = many[:, many.shape[1] - radius - 1, None]
    return many[:, 2 * radius + 1 :] > many[:, : -2 * radius - 1]
