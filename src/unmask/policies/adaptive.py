"""A threshold per row that follows what the row shows: adaptive conformal inference (arXiv 2106.00170)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import Spec, param
from ..core.errors import SpecError
from ..core.pick import at_least
from ..core.policy import Policy, Wrapper, with_threshold
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION


@dataclass(frozen=True)
class AdaptiveState:
    """The policy's state, ``tau [B]`` float64, and of each mask what was predicted at first sight: ``token [B, T]`` and
    ``confidence [B, T]`` (0: not seen yet, or committed).
    """

    inner: Any
    tau: Tensor
    token: Tensor = field(metadata=PER_POSITION)
    confidence: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Adaptive(Wrapper):
    """Decodes by ``policy``, whose threshold moves in each row by the row's own early predictions.

    A position that was at least ``low`` sure at first sight and was held back tells, once it is committed, whether it
    had been right to wait: it is an error when the token is now another one. Each moves the threshold by ``gain``
    (error - ``target``), between ``low`` and ``high``. It begins at the policy's own number.

    As long as the threshold stays between its bounds, the share of errors among n positions is within
    (``high`` - ``low``) / (``gain`` n) of ``target``, whatever the text (the paper's proposition 4.1).
    """

    name = "adaptive"
    paper = "arXiv 2106.00170"
    refuses = "policies that commit by no confidence threshold: there is nothing to adapt"

    policy: Policy = param(Spec("threshold"), "the policy whose threshold moves, as a spec")
    gain: float = param(0.05, "how far one error moves the threshold; 0: not at all", ge=0, le=1)
    target: float = param(0.05, "share of errors at which the threshold rests", ge=0, le=1)
    low: float = param(0.7, "least threshold, and least early confidence of the positions watched", gt=0, le=2)
    high: float = param(0.99, "largest threshold", gt=0, le=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise SpecError(f"adaptive: low must be at most high ({self.high:g}), got {self.low:g}")
        if isinstance(self.policy, Policy) and not self.policy.threshold:
            raise SpecError(f"adaptive: policy must have a confidence threshold; {self.policy.name} has none")

    def init(self, canvas: Canvas, sampling: Sampling) -> AdaptiveState:
        """The policy's state and its threshold; nothing seen."""
        confidence = torch.zeros(canvas.tokens.shape, dtype=torch.float64, device=canvas.tokens.device)
        tau = torch.full_like(confidence[:, 0], getattr(self.policy, self.policy.threshold))
        return AdaptiveState(self.policy.init(canvas, sampling), tau, torch.zeros_like(canvas.tokens), confidence)

    def ask(self, canvas: Canvas, state: AdaptiveState) -> Ask:
        """The policy's."""
        return self.policy.ask(canvas, state.inner)

    def decide(self, canvas: Canvas, prediction: Prediction, state: AdaptiveState) -> tuple[Update, AdaptiveState]:
        """Commit as the policy does at the row's threshold; then move that."""
        update, inner = with_threshold(self.policy, state.tau).decide(canvas, prediction, state.inner)
        held = update.write & at_least(state.confidence, self.low)
        errors = (held & (update.token != state.token)).sum(1)
        step = self.gain * (errors - self.target * held.sum(1).double())
        tau = torch.where(step == 0, state.tau, (state.tau + step).clamp(self.low, self.high))
        fresh = (prediction.confidence > -torch.inf) & (state.confidence == 0)
        token = torch.where(fresh, prediction.token, state.token)
        confidence = torch.where(fresh, prediction.confidence, state.confidence).masked_fill(update.write, 0)
        return update, AdaptiveState(inner, tau, token, confidence)

    def notes(self, canvas: Canvas, before: AdaptiveState, after: AdaptiveState) -> Mapping[str, Tensor]:
        """The policy's, and the ``threshold`` of the row."""
        return {**super().notes(canvas, before.inner, after.inner), "threshold": before.tau}
