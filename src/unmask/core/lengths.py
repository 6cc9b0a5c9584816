"""What policies that change the length of a response share; see ``Update.grow``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .canvas import Canvas
from .config import Spec, param
from .errors import SpecError
from .policy import Policy, Wrapper
from .protocols import Prediction


@dataclass(frozen=True)
class Resizing(Wrapper):
    """Base of policies around another one that change the length of responses."""

    resizes = True
    refuses = (
        "fixed tokens and constraints, which need a response of known length; models that decode in blocks, where "
        "gen_length is an upper bound already; policies with a schedule made for a length (`steps`, `dream`, `rnd1`), "
        "and policies around it"
    )

    policy: Policy = param(Spec("threshold"), "policy that decodes, as a spec")
    max_length: int = param(2048, "most tokens of a response", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.policy, Policy) and self.policy.paced:
            raise SpecError(
                f"{self.name}: policy must not have a schedule that is made for a length; {self.policy} has"
            )

    def grows_to(self, gen_length: int) -> int:
        """``max_length``, unless it begins with more."""
        return max(gen_length, self.max_length)


def end_share(canvas: Canvas, prediction: Prediction, visible: Tensor | None, look: int) -> Tensor:
    """``[B]`` float32, the sum of the probabilities of the last ``look`` ends of text predicted in the response, over
    ``look``. NaN where the forward pass did not predict the end of the response, or not all that was in its input.

    Args:
        canvas: the rows.
        prediction: with ``end``.
        visible: ``[B, T]`` what was in the input; None: all.
        look: how many.
    """
    assert prediction.end is not None
    inside = canvas.response if visible is None else canvas.response & visible
    last = canvas.position == canvas.length[:, None] - 1
    unknown = ((inside | last) & (prediction.end == -torch.inf)).any(1)
    found = inside & (prediction.end > 0)
    behind = found.flip(1).cumsum(1).flip(1)  # how many there are from here on
    total = torch.where(found & (behind <= look), prediction.end, 0.0).sum(1)
    return torch.where(unknown, torch.nan, total / look).float()
