"""dInfer's hierarchical decoding (arXiv 2510.08666): one position of every run of masked ones a pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import above, best
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction


@dataclass(frozen=True)
class Hierarchical(Policy):
    """Commits all positions above ``tau``, of every run of masked positions the most confident one if above ``low``,
    and always the most confident one of the block.

    A token in the middle of a run splits it: n masked positions take about log2(n) forward passes.
    """

    name = "hierarchical"
    paper = "arXiv 2510.08666"
    spans = True
    threshold = "tau"

    tau: float = param(0.9, "confidence above which any position is committed", ge=0, le=2)
    low: float = param(0.4, "confidence above which the best position of a run is committed", ge=0, le=2)
    block_length: int | None = blocks()

    def ask(self, canvas: Canvas, state: None) -> Ask:
        return Ask(canvas.block(self.block_length))

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        confidence = prediction.confidence
        leads = (confidence == _best_of_run(confidence)) & (confidence > self.low)
        write = leads | above(confidence, self.tau) | best(confidence)
        return Update(write & (confidence > -torch.inf), prediction.token), None


def _best_of_run(confidence: Tensor) -> Tensor:
    """``[B, T]`` the highest confidence of the run of masked positions that each one is in; -inf elsewhere."""
    open_ = confidence > -torch.inf
    begins = open_ & ~torch.cat([torch.zeros_like(open_[:, :1]), open_[:, :-1]], 1)
    run = begins.cumsum(1)  # 0 before the first; what follows a run is -inf and changes nothing
    highest = torch.full_like(confidence[:, :1], -torch.inf).repeat(1, confidence.shape[1] + 1)
    return highest.scatter_reduce(1, run, confidence, "amax").gather(1, run)
