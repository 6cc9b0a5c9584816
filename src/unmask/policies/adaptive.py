"""A threshold per row that follows the row's own early mistakes: adaptive conformal inference (arXiv 2106.00170)."""

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
from ..core.policy import Policy, Wrapper, threshold_of, with_threshold
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION


@dataclass(frozen=True)
class AdaptiveState:
    """The policy's state, thresholds ``tau [B]`` in float64, and the first prediction of each masked position:
    ``token [B, T]`` and ``confidence [B, T]`` (0: not predicted yet, or committed).
    """

    inner: Any
    tau: Tensor
    token: Tensor = field(metadata=PER_POSITION)
    confidence: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Adaptive(Wrapper):
    """Decodes by ``policy`` with a threshold that moves in each row by the errors of the row's first predictions.

    A position whose first prediction had a confidence of at least ``low`` but was not committed is watched. When it is
    committed, it counts as an error if the token is another one. Each such position moves the threshold by ``gain``
    (error - ``target``), within ``low`` and ``high``. The threshold begins at the policy's own.

    While the threshold stays within its bounds, the share of errors among n watched positions differs from ``target``
    by at most (``high`` - ``low``) / (``gain`` n), whatever the text (proposition 4.1).
    """

    name = "adaptive"
    paper = "arXiv 2106.00170"
    refuses = "policies that commit by no confidence threshold: there is nothing to adapt"

    policy: Policy = param(Spec("threshold"), "policy whose threshold moves, as a spec")
    gain: float = param(0.05, "how far an error moves the threshold; 0: not at all", ge=0, le=1)
    target: float = param(0.05, "share of errors at which the threshold stays where it is", ge=0, le=1)
    low: float = param(0.7, "least threshold, and least first confidence of the positions watched", gt=0, le=2)
    high: float = param(0.99, "largest threshold", gt=0, le=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise SpecError(f"adaptive: low must be at most high ({self.high:g}), got {self.low:g}")
        if isinstance(self.policy, Policy) and threshold_of(self.policy) is None:
            raise SpecError(f"adaptive: policy must have a confidence threshold; {self.policy.name} has none")

    def init(self, canvas: Canvas, sampling: Sampling) -> AdaptiveState:
        confidence, own = torch.zeros_like(canvas.tokens, dtype=torch.float64), threshold_of(self.policy)
        assert own is not None
        tau = torch.full_like(confidence[:, 0], own)
        return AdaptiveState(self.policy.init(canvas, sampling), tau, torch.zeros_like(canvas.tokens), confidence)

    def ask(self, canvas: Canvas, state: AdaptiveState) -> Ask:
        return self.policy.ask(canvas, state.inner)

    def decide(self, canvas: Canvas, prediction: Prediction, state: AdaptiveState) -> tuple[Update, AdaptiveState]:
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
        """Those of the policy, and the ``threshold`` of the row."""
        return {**super().notes(canvas, before.inner, after.inner), "threshold": before.tau}
