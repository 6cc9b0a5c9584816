"""Any policy without the far end of the canvas in its input (arXiv 2506.00413, section 4: the maximum lookahead M)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..core.canvas import Canvas
from ..core.config import Spec, param
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask


@dataclass(frozen=True)
class Lookahead(Wrapper):
    """Decodes by ``policy``; masked positions ``positions`` or more behind the first one of its window leave the input.

    They are neither computed, attended to nor predicted until the window comes near; text that stands there is still
    attended to. A forward pass then costs what the prompt, the text so far and ``positions`` cost, whatever
    ``gen_length`` is; in exchange the model does not know how long its response may become. ``apd`` and
    ``left_to_right`` have the same as a parameter, from the first masked position on.
    """

    name = "lookahead"
    paper = "arXiv 2506.00413"

    policy: Policy = param(Spec("threshold"), "the policy that decodes, as a spec")
    positions: int = param(100, "positions from the window's first masked one on that are in the input", ge=1)

    def ask(self, canvas: Canvas, state: Any) -> Ask:
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
