"""Fast-dLLM's confidence-aware parallel decoding (arXiv 2505.22618, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import at_least, best, top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class ThresholdState:
    """``[B]``: forward passes so far (``count``) and ``start`` of the block of the last one (-1: none)."""

    count: Tensor
    start: Tensor


@dataclass(frozen=True)
class Threshold(Policy):
    """Commits every position of the current block whose confidence reaches ``tau``, and always the most confident one.

    Fast-dLLM's code for Dream adds ``steps`` without a cache and ``opening=first`` with one, and takes confidences from
    the distribution after temperature, top-k and top-p (``confidence=sampled``).
    """

    name = "threshold"
    paper = "arXiv 2505.22618"
    spans = True
    threshold = "tau"

    tau: float = param(
        0.9, "confidence from which a position is committed; above 1: the most confident one alone", ge=0, le=2
    )
    block_length: int | None = blocks()
    steps: int | None = param(
        None, "commit no more than filling the response evenly in so many forward passes would", ge=1, hidden=True
    )
    opening: str = param(
        "rule",
        "a block's first forward pass commits by the rule, or its first position",
        choices=("rule", "first"),
        hidden=True,
    )
    confidence: str = param(
        "model",
        "probability under the model, or after temperature, top-k and top-p",
        choices=("model", "sampled"),
        hidden=True,
    )

    @property
    def paced(self) -> bool:
        return self.steps is not None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tempered"} if self.confidence == "sampled" else ())

    def init(self, canvas: Canvas, sampling: Sampling) -> ThresholdState:
        return ThresholdState(torch.zeros_like(canvas.prompt), torch.full_like(canvas.prompt, -1))

    def ask(self, canvas: Canvas, state: ThresholdState) -> Ask:
        block = canvas.block(self.block_length)
        optional = block if self.opening == "rule" else None
        return Ask(block, cell=canvas.cell(self.block_length), optional=optional)

    def decide(self, canvas: Canvas, prediction: Prediction, state: ThresholdState) -> tuple[Update, ThresholdState]:
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
