"""Streaming-dLLM's dynamic threshold (arXiv 2601.17917): the less is left to decode, the less confidence is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import Spec, param
from ..core.errors import SpecError
from ..core.policy import Policy, Wrapper, threshold_of, with_threshold
from ..core.protocols import Ask, Prediction


@dataclass(frozen=True)
class MaskRatio(Wrapper):
    """Decodes by ``policy`` with a threshold that falls as its window and what follows are filled.

    The threshold is the policy's own times 1 - ``alpha`` (1 - m), m the share of masked positions from the window's
    start on, of those in the input: with `suffix` as the policy, of the block and the kept suffix.
    """

    name = "mask_ratio"
    paper = "arXiv 2601.17917"
    refuses = "policies that commit by no confidence threshold: there is nothing to lower"

    policy: Policy = param(Spec("threshold"), "policy whose threshold falls, as a spec")
    alpha: float = param(0.3, "by how much it has fallen where nothing is masked any more; 0: not at all", ge=0, le=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.policy, Policy) and threshold_of(self.policy) is None:
            raise SpecError(f"mask_ratio: policy must have a confidence threshold; {self.policy} has none")

    def decide(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Update, Any]:
        own = threshold_of(self.policy)
        assert own is not None
        share = self._share(canvas, self.policy.ask(canvas, state))
        return with_threshold(self.policy, own * (1 - self.alpha * (1 - share))).decide(canvas, prediction, state)

    @staticmethod
    def _share(canvas: Canvas, ask: Ask) -> Tensor:
        """``[B]`` float64, of what is in the input from the window's start on, the share that is masked."""
        window = ask.window if ask.cell is None else ask.cell
        region = canvas.response & (canvas.position >= canvas.first(window)[:, None])
        if ask.visible is not None:
            region = region & ask.visible
        masks = (region & (canvas.tokens == canvas.spec.mask)).sum(1)
        return masks.double() / region.sum(1).clamp(min=1)
