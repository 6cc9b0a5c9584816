"""RND1's schedules: the masks of lowest entropy first, evenly over the steps, or as many as an entropy bound allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class Rnd1State:
    """``[B]``: ``start`` of the current block (-1: none yet), masks it began with (``masks``) and steps left."""

    start: Tensor
    masks: Tensor
    left: Tensor


@dataclass(frozen=True)
class Rnd1(Policy):
    """After the step that leaves s of ``steps``, the share s / ``steps`` of the masks is left, those of highest
    entropy; the last step commits all. Steps that would commit nothing are left out.

    With ``gamma`` a step commits, in order of confidence, as many as keep the sum of their entropies less the largest
    of them within ``gamma`` nats. Entropies and confidences are those after temperature, top-k and top-p.
    """

    name = "rnd1"
    paper = "-"
    paced = True

    steps: int = param(256, "steps of the whole response, of a block model of each block", ge=2)
    scale: float = param(1.0, "temperature of entropies and confidences; tokens are chosen as the request says", gt=0)
    gamma: float | None = param(None, "bound in nats on the entropies of a step; none: by the schedule", ge=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy", "tempered"})

    def init(self, canvas: Canvas, sampling: Sampling) -> Rnd1State:
        zero = torch.zeros_like(canvas.prompt)
        return Rnd1State(zero - 1, zero, zero)

    def ask(self, canvas: Canvas, state: Rnd1State) -> Ask:
        heat = torch.full_like(canvas.prompt, self.scale, dtype=torch.float64)
        return Ask(canvas.block(None), heat=None if self.scale == 1 else heat)

    def decide(self, canvas: Canvas, prediction: Prediction, state: Rnd1State) -> tuple[Update, Rnd1State]:
        assert prediction.entropy is not None
        open_, start = prediction.confidence > -torch.inf, canvas.block_start(None)
        count, fresh = open_.sum(1), start != state.start
        masks = torch.where(fresh, count, state.masks).clamp(min=1)
        left = torch.where(fresh, self.steps, state.left) - 1
        if self.gamma is None:
            due = (count * self.steps + masks - 1) // masks - 1  # the most steps left with fewer masks than now
            left = torch.minimum(left, due).clamp(min=0)
            score, many = (
                torch.where(open_, -prediction.entropy.double(), -torch.inf),
                count - masks * left // self.steps,
            )
        else:
            score = prediction.confidence
            ranked = prediction.entropy.gather(1, score.argsort(dim=1, descending=True, stable=True))
            many = (ranked.cumsum(1) - ranked.cummax(1).values <= self.gamma).sum(1).clamp(min=1)
        many = torch.where(left <= 0, count, many)
        return Update(top(score, many), prediction.token), Rnd1State(start, masks, left)
