"""Prophet (arXiv 2508.19982): once the model is sure of the answer, commit everything that is left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import Spec, param
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Prediction, Sampling

_EARLY, _LATE = 0.33, 0.67  # progress at which the published thresholds change


@dataclass(frozen=True)
class Prophet(Wrapper):
    """Decodes by ``policy`` until the logits' gap between best and second token is wide, then commits all masks.

    The gap is averaged over the masks of the answer region and compared with ``high``, ``mid`` or ``low`` as less than
    33 %, less than 67 % or more of the response is filled after the forward's own commits; of a schedule with equal
    shares this is the paper's step / steps. The published region is five positions behind a forced "The answer is";
    where the answer stands is not known in general, and the default region is the whole response. The numbers are for
    LLaDA-8B; other models have logits of another scale.

    Every forward asks for all masks. Rows in which the policy leaves some out of the input or allows them to be stale
    are not looked at, so that what it sees stays the same; but a cache that computes what is asked for (``dual``,
    ``d2``) computes more than for the policy alone, and its answers may differ.
    """

    name = "prophet"
    paper = "arXiv 2508.19982"

    policy: Policy = param(Spec("vanilla"), "the policy that decodes until then, as a spec")
    high: float = param(7.5, "mean gap of the logits that is enough below 33 % of the response", ge=0)
    mid: float = param(5.0, "the same below 67 %", ge=0)
    low: float = param(2.5, "the same from there on", ge=0)
    answer_start: int = param(0, "first position of the answer region, counted from the prompt's end", ge=0)
    answer_length: int | None = param(None, "positions of the answer region; none: to the end", ge=1)

    @property
    def needs(self) -> frozenset[str]:
        """What the policy needs, and the gap."""
        return self.policy.needs | {"gap"}

    def init(self, canvas: Canvas, sampling: Sampling) -> Any:
        """The policy's state; nothing else is kept."""
        return self.policy.init(canvas, sampling)

    def ask(self, canvas: Canvas, state: Any) -> Ask:
        """What the policy asks for and, where it keeps all masks in the input and fresh, all masks."""
        ask = self.policy.ask(canvas, state)
        left_out = torch.zeros_like(canvas.masked)
        if ask.visible is not None:
            left_out = left_out | ~ask.visible
        if ask.stale is not None:
            left_out = left_out | ask.stale
        whole = ~(left_out & canvas.masked).any(1, keepdim=True)
        optional = None if ask.optional is None else ask.optional & ~whole
        return replace(ask, window=ask.window | canvas.masked & whole, optional=optional)

    def decide(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Update, Any]:
        """The policy's decision, or everything."""
        own = self.policy.ask(canvas, state).window & canvas.masked
        update, after = self.policy.decide(canvas, prediction.within(own), state)
        masked = canvas.masked
        all_in = (masked == (prediction.confidence > -torch.inf)).all(1)
        sure = (all_in & self._sure(canvas, prediction, update))[:, None]
        token = torch.where(update.write, update.token, prediction.token)
        remask = None if update.remask is None else update.remask & ~sure
        return Update(torch.where(sure, masked, update.write), token, remask), after

    def _sure(self, canvas: Canvas, prediction: Prediction, update: Update) -> Tensor:
        """``[B]`` rows whose answer has a wide enough gap; none where the answer has no mask left."""
        assert prediction.gap is not None
        start = (canvas.prompt + self.answer_start)[:, None]
        region = canvas.masked & (canvas.position >= start)
        if self.answer_length is not None:
            region = region & (canvas.position < start + self.answer_length)
        count = region.sum(1)
        gap = torch.where(region, prediction.gap, 0).sum(1) / count.clamp(min=1)
        left = (canvas.response & (canvas.apply(update).tokens == canvas.spec.mask)).sum(1)
        progress = 1 - left.double() / (canvas.length - canvas.prompt)
        enough = torch.where(progress < _EARLY, self.high, torch.where(progress < _LATE, self.mid, self.low))
        return (count > 0) & (gap >= enough)
