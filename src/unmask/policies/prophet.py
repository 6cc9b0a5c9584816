"""Prophet (arXiv 2508.19982): once the model is certain of the answer, commit every masked position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import Spec, param
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Prediction

_EARLY, _LATE = 0.33, 0.67  # progress at which the published thresholds change


@dataclass(frozen=True)
class Prophet(Wrapper):
    """Decodes by ``policy`` until the best logit leads the second by enough, then commits all masked positions.

    The lead is averaged over the masked positions of the answer region and compared with ``high``, ``mid`` or ``low``
    as less than 33 %, less than 67 % or more of the response is filled after the forward pass; of a schedule with equal
    shares this is the paper's step / steps. The published region begins five positions behind a forced "The answer is";
    where the answer stands is not known in general, and the default region is the whole response. The numbers are for
    LLaDA-8B; other models have logits of another scale.

    Every forward pass predicts all masked positions. Rows in which the policy leaves some out of the input or need not
    have them recomputed are not judged, so that its own predictions stay the same; but a cache that computes the
    positions predicted (``dual``, ``d2``) computes more than for the policy alone, and predictions may differ.
    """

    name = "prophet"
    paper = "arXiv 2508.19982"

    policy: Policy = param(Spec("vanilla"), "policy that decodes until then, as a spec")
    high: float = param(7.5, "mean lead of the best logit that is enough below 33 % of the response", ge=0)
    mid: float = param(5.0, "the same below 67 %", ge=0)
    low: float = param(2.5, "the same from there on", ge=0)
    answer_start: int = param(0, "first position of the answer region, counted from the prompt's end", ge=0)
    answer_length: int | None = param(None, "positions of the answer region; none: to the end", ge=1)

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs | {"gap"}

    def ask(self, canvas: Canvas, state: Any) -> Ask:
        """What the policy asks for and, where it has all masked positions in the input and fresh, all of them."""
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
        ask, masked = self.policy.ask(canvas, state), canvas.masked
        own = ask.window & masked if ask.reread is None else ask.window & masked | ask.reread
        update, after = self.policy.decide(canvas, prediction.within(own), state)
        all_in = ~(masked & (prediction.confidence == -torch.inf)).any(1)
        sure = (all_in & self._sure(canvas, prediction, update))[:, None]
        token = torch.where(update.write, update.token, prediction.token)
        remask = None if update.remask is None else update.remask & ~sure
        return replace(update, write=update.write | masked & sure, token=token, remask=remask), after

    def _sure(self, canvas: Canvas, prediction: Prediction, update: Update) -> Tensor:
        """``[B]`` rows whose answer has a lead that is enough; none where the answer has no masked position."""
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
