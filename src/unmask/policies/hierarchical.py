"""dInfer's hierarchical decoding (arXiv 2510.08666): one token out of every run of masks, so that neighbours wait."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import above, best
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class Hierarchical(Policy):
    """Commits the most confident position of every run of masks in the block if it is above ``low``, all positions
    above ``tau``, and always the most confident one.

    A token in the middle of a run splits it: n masks take about log2(n) forwards.
    """

    name = "hierarchical"
    paper = "arXiv 2510.08666"
    threshold = "tau"

    tau: float = param(0.9, "confidence above which any position is committed", ge=0, le=2)
    low: float = param(0.4, "confidence above which the best position of a run is committed", ge=0, le=2)
    block_length: int | None = param(
        32, "positions per block; none: the whole response is one block", ge=1, optional=True
    )

    def init(self, canvas: Canvas, sampling: Sampling) -> None:
        """No state."""

    def ask(self, canvas: Canvas, state: None) -> Ask:
        """The current block."""
        return Ask(canvas.block(self.block_length))

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        """Commit."""
        confidence = prediction.confidence
        leads = (confidence == _best_of_run(confidence)) & (confidence > self.low)
        write = leads | above(confidence, self.tau) | best(confidence)
        return Update(write & (confidence > -torch.inf), prediction.token), None


def _best_of_run(confidence: Tensor) -> Tensor:
    """``[B, T]`` the highest confidence of the run of masks that each position is in; -inf elsewhere."""
    open_ = confidence > -torch.inf
    begins = open_ & ~torch.cat([torch.zeros_like(open_[:, :1]), open_[:, :-1]], 1)
    run = begins.cumsum(1)  # 0 before the first; behind a run the -inf of no mask change nothing
    highest = torch.full_like(confidence[:, :1], -torch.inf).repeat(1, confidence.shape[1] + 1)
    return highest.scatter_reduce(1, run, confidence, "amax").gather(1, run)
