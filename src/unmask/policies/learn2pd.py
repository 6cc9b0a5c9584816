"""Learn2PD (arXiv 2509.25188): a small network, trained to tell which predictions are final."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import param
from ..core.errors import ModelError
from ..core.nets import Shape, fit, load, put, take
from ..core.pick import at_least, best
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction

SHAPES: dict[str, Shape] = {
    "hidden.weight": ("H", "N"),
    "hidden.bias": ("H",),
    "out.weight": ("N", "H"),
    "out.bias": ("N",),
}


@dataclass(frozen=True)
class Learn2pd(Policy):
    """Commits positions whose prediction is final with a probability of at least ``tau``, else the most confident one.

    A filter, two layers over the confidences of all N = 32 positions of the block, was trained to tell whether the
    prediction at each is the token that decoding one at a time ends with (``recipes/policies/learn2pd.py``). Its input
    is 1 at positions already filled and 0 behind the end of the response or of a shorter block. That a response ends
    with its end of text, a part of the paper's method, holds for any policy here.
    """

    name = "learn2pd"
    paper = "arXiv 2509.25188"

    tau: float = param(0.96, "least probability of being final; above 1: the most confident position alone", ge=0, le=2)
    block_length: int = param(32, "positions per block; at most those that the filter reads", ge=1)
    weights: str | None = param(None, "file with the filter's weights; none: those trained for unmask-tiny", file=True)

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        width = fit(self.name, self.network(torch.device("cpu")), SHAPES)["N"]
        if self.block_length > width:
            raise ModelError(
                f"{self.name}: the filter reads {width} positions; block_length must be at most that, "
                f"got {self.block_length}"
            )

    def ask(self, canvas: Canvas, state: None) -> Ask:
        return Ask(canvas.block(self.block_length))

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        confidence, place = prediction.confidence, canvas.places(self.block_length)
        score = self.final(self.network(confidence.device), self.inputs(confidence, place)).sigmoid()
        open_ = confidence > -torch.inf
        sure = at_least(torch.where(open_, put(score, place, confidence.shape[1]), -torch.inf), self.tau)
        return Update(sure | best(confidence) & ~sure.any(1, keepdim=True), prediction.token), None

    def network(self, device: torch.device) -> dict[str, Tensor]:
        """The filter's weights."""
        return load(self.name, self.weights, device)

    @staticmethod
    def inputs(confidence: Tensor, place: Tensor) -> Tensor:
        """What the filter reads, ``[B, Q]`` of ``confidence [B, T]`` at the block's places."""
        seen = take(confidence, place, 0.0)
        return torch.where(seen == -torch.inf, 1.0, seen)  # no candidate: filled

    @staticmethod
    def final(weights: dict[str, Tensor], seen: Tensor) -> Tensor:
        """Log-odds that a prediction is final, ``[B, Q]``, of what the filter reads."""
        spare = weights["hidden.weight"].shape[1] - seen.shape[1]
        hidden = F.linear(F.pad(seen, (0, spare)), weights["hidden.weight"], weights["hidden.bias"]).relu()
        return F.linear(hidden, weights["out.weight"], weights["out.bias"])[:, : seen.shape[1]]
