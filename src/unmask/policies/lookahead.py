"""Any policy with the far end of the canvas out of sight (arXiv 2506.00413, section 4: the maximum lookahead M)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..core.canvas import Canvas, Update
from ..core.config import Spec, param
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class Lookahead(Wrapper):
    """Decodes by ``policy``, but masks ``positions`` or more behind the first one of its window leave the input.

    Such masks are neither computed, attended to nor predicted until the window comes near; text that stands
    there is still seen. A forward then costs what the prompt, the text so far and ``positions`` cost, whatever
    ``gen_length`` is; in exchange the model cannot see how long its response may become. ``apd`` and ``left_to_right``
    have the same as a parameter, from the first mask on.
    """

    name = "lookahead"
    paper = "arXiv 2506.00413"

    policy: Policy = param(Spec("threshold"), "the policy that decodes, as a spec")
    positions: int = param(100, "positions from the window's first mask on that stay in the input", ge=1)

    def init(self, canvas: Canvas, sampling: Sampling) -> Any:
        """The policy's state."""
        return self.policy.init(canvas, sampling)

    def ask(self, canvas: Canvas, state: Any) -> Ask:
        """The policy's, as far as it is in sight."""
        ask = self.policy.ask(canvas, state)
        first = canvas.first(ask.window & canvas.masked)
        near = canvas.position < (first + self.positions)[:, None]
        seen = near | ~canvas.masked
        return replace(
            ask,
            window=ask.window & near,
            visible=seen if ask.visible is None else seen & ask.visible,
            probe=None if ask.probe is None else ask.probe & seen,
        )

    def decide(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Update, Any]:
        """The policy's, of the positions in sight."""
        return self.policy.decide(canvas, prediction, state)
