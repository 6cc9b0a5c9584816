"""Fast-dLLM's confidence-aware parallel decoding (arXiv 2505.22618, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import at_least, best
from ..core.protocols import Ask, PolicyBase, Prediction, Sampling


@dataclass(frozen=True)
class Threshold(PolicyBase):
    """Commits every position of the current block whose confidence reaches ``tau``, and always the best one."""

    name = "threshold"
    paper = "arXiv 2505.22618"

    tau: float = param(0.9, "confidence from which a position is committed; above 1: only the best one", ge=0, le=2)
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
        write = at_least(prediction.confidence, self.tau) | best(prediction.confidence)
        return Update(write, prediction.token), None
