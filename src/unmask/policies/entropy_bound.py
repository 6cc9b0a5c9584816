"""EB-Sampler (arXiv 2505.24857): as many positions as a bound on their joint entropy allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction


@dataclass(frozen=True)
class EntropyBound(Policy):
    """Commits the positions of the block by ascending entropy, as long as sum H - max H <= ``gamma``, at least one.

    What is left of the sum without its largest term bounds the error made by committing them as if they were
    independent (paper, section 4). ``order=confidence`` and ``order=margin`` rank by top-1 probability and by its
    margin over the second; the sum then leaves out the last term instead of the largest, as d2Cache's code does.
    """

    name = "entropy_bound"
    paper = "arXiv 2505.24857"
    spans = True

    gamma: float = param(0.001, "bound in nats on sum H - max H", ge=0)
    block_length: int | None = blocks()
    order: str = param(
        "entropy",
        "positions are ranked by entropy, top-1 probability or margin",
        choices=("entropy", "confidence", "margin"),
        hidden=True,
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy", "margin"} if self.order == "margin" else {"entropy"})

    def ask(self, canvas: Canvas, state: None) -> Ask:
        block = canvas.block(self.block_length)
        return Ask(block, optional=block)

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        assert prediction.entropy is not None
        entropy, open_ = prediction.entropy, prediction.confidence > -torch.inf
        ranks = {"entropy": -entropy, "confidence": prediction.confidence, "margin": prediction.margin}
        rank = ranks[self.order]
        assert rank is not None
        score = torch.where(open_, rank, -torch.inf)
        ranked = entropy.gather(1, score.argsort(dim=1, descending=True, stable=True))
        before = ranked.cumsum(1) - ranked  # by ascending entropy the last is the largest
        count = (before <= self.gamma).sum(1).clamp(min=1)
        return Update(top(score, count), prediction.token), None
