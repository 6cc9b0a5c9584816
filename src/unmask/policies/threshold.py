"""Fast-dLLM's confidence-aware parallel decoding (arXiv 2505.22618, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import at_least, best, top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class ThresholdState:
    """``[B]``: forwards made so far (``count``), ``start`` of the block of the last one (-1: none)."""

    count: Tensor
    start: Tensor


@dataclass(frozen=True)
class Threshold(Policy):
    """Commits every position of the current block whose confidence reaches ``tau``, and always the best one.

    ``steps`` and ``opening`` are what Fast-dLLM's code for Dream adds, without and with a cache; it also takes the
    confidence of the distribution ``sampled`` from, after temperature, top-k and top-p.
    """

    name = "threshold"
    paper = "arXiv 2505.22618"
    threshold = "tau"

    tau: float = param(0.9, "confidence from which a position is committed; above 1: only the best one", ge=0, le=2)
    block_length: int | None = param(
        32, "positions per block; none: the whole response is one block", ge=1, optional=True
    )
    steps: int | None = param(None, "never be ahead of filling the response evenly in so many forwards", ge=1)
    opening: str = param(
        "rule", "a block's first forward commits by the rule, or its first position", choices=("rule", "first")
    )
    confidence: str = param(
        "model", "probability under the model, or under what is sampled from", choices=("model", "sampled")
    )

    @property
    def needs(self) -> frozenset[str]:
        """Which distribution."""
        return frozenset({"tempered"} if self.confidence == "sampled" else ())

    def init(self, canvas: Canvas, sampling: Sampling) -> ThresholdState:
        """Nothing done."""
        return ThresholdState(torch.zeros_like(canvas.prompt), torch.full_like(canvas.prompt, -1))

    def ask(self, canvas: Canvas, state: ThresholdState) -> Ask:
        """The current block."""
        block = canvas.block(self.block_length)
        return Ask(block, optional=block if self.opening == "rule" else None)

    def decide(self, canvas: Canvas, prediction: Prediction, state: ThresholdState) -> tuple[Update, ThresholdState]:
        """Commit."""
        confidence, start = prediction.confidence, canvas.block_start(self.block_length)
        write = at_least(confidence, self.tau) | best(confidence)
        if self.steps is not None:
            length = (canvas.response & ~canvas.fixed).sum(1)
            filled = length - (canvas.response & (canvas.tokens == canvas.spec.mask)).sum(1)
            allowed = length * (state.count + 1) // self.steps - filled
            write = write & top(confidence, allowed.clamp(min=1))
        if self.opening == "first":
            write = torch.where((start != state.start)[:, None], canvas.position == canvas.frontier[:, None], write)
        return Update(write, prediction.token), replace(state, count=state.count + 1, start=start)
