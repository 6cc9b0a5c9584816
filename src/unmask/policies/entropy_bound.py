"""EB-Sampler (arXiv 2505.24857): as many tokens as a bound on their joint entropy allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import top
from ..core.protocols import Ask, PolicyBase, Prediction, Sampling


@dataclass(frozen=True)
class EntropyBound(PolicyBase):
    """Commits the positions of the block by ascending entropy, as long as sum H - max H <= ``gamma``, at least one.

    What is left of the sum without its largest term bounds the error made by committing them as if they were
    independent (paper, section 4). ``order=confidence`` ranks by confidence and leaves out the last term instead of the
    largest, as d2Cache's code does.
    """

    name = "entropy_bound"
    paper = "arXiv 2505.24857"
    needs = frozenset({"entropy"})

    gamma: float = param(0.001, "bound on the entropy in nats", ge=0)
    block_length: int | None = param(
        32, "positions per block; none: the whole response is one block", ge=1, optional=True
    )
    order: str = param("entropy", "what ranks the positions", choices=("entropy", "confidence"))

    def init(self, canvas: Canvas, sampling: Sampling) -> None:
        """No state."""

    def ask(self, canvas: Canvas, state: None) -> Ask:
        """The current block."""
        block = canvas.block(self.block_length)
        return Ask(block, optional=block)

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        """Commit."""
        assert prediction.entropy is not None
        entropy, open_ = prediction.entropy, prediction.confidence > -torch.inf
        rank = -entropy if self.order == "entropy" else prediction.confidence
        score = torch.where(open_, rank, -torch.inf)
        ranked = entropy.gather(1, score.argsort(dim=1, descending=True, stable=True))
        before = ranked.cumsum(1) - ranked  # by ascending entropy the last is the largest
        count = (before <= self.gamma).sum(1).clamp(min=1)
        return Update(top(score, count), prediction.token), None
