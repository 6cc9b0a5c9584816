"""Any policy with a thinned suffix: Streaming-dLLM (arXiv 2601.17917) and DPad (arXiv 2508.14148)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import Spec, param
from ..core.policy import Policy, Wrapper
from ..core.predict import uniform
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class SuffixState:
    """The policy's state, and ``seed [B]`` of what is drawn."""

    inner: Any
    seed: Tensor


@dataclass(frozen=True)
class Suffix(Wrapper):
    """Decodes by ``policy``; behind its window only the next ``window`` masked positions and the last are in the input.

    All keep their true position ids, so that the model still sees how long its response is. The others are neither
    computed nor attended to; text that stands there is attended to all the time. With ``decay`` a position d behind the
    window stays with probability exp(-(``decay`` d / ``window``)^2 / 2), drawn anew for each block: DPad's dropout,
    which leaves ``last`` out. The early end that both papers add holds for any policy here.
    """

    name = "suffix"
    paper = "arXiv 2601.17917"
    threshold = "policy"

    policy: Policy = param(Spec("threshold"), "the policy that decodes, as a spec")
    window: int = param(32, "masked positions behind the policy's window that are in the input", ge=0)
    last: int = param(1, "positions at the end of the response that are in the input as well", ge=0)
    decay: float | None = param(
        None, "how fast the chance of the window's positions falls with distance; none: all are in", ge=0
    )

    def init(self, canvas: Canvas, sampling: Sampling) -> SuffixState:
        return SuffixState(self.policy.init(canvas, sampling), sampling.seed)

    def ask(self, canvas: Canvas, state: SuffixState) -> Ask:
        ask = self.policy.ask(canvas, state.inner)
        end = torch.where(ask.window, canvas.position + 1, 0).amax(1, keepdim=True)
        away = canvas.position - end
        near = away < self.window
        if self.decay is not None:
            first, kind = canvas.first(ask.window), torch.full_like(state.seed, -6)
            chance = (-0.5 * (self.decay * (away + 1).double() / max(1, self.window)) ** 2).exp()
            near = near & ((away < 0) | (uniform(state.seed, kind, first, near.shape[1]) < chance))
        near = near | (canvas.position >= (canvas.length - self.last)[:, None])
        seen = near | ~canvas.open
        return replace(ask, visible=seen if ask.visible is None else seen & ask.visible)

    def decide(self, canvas: Canvas, prediction: Prediction, state: SuffixState) -> tuple[Update, SuffixState]:
        update, inner = self.policy.decide(canvas, prediction, state.inner)
        return update, replace(state, inner=inner)

    def notes(self, canvas: Canvas, before: SuffixState, after: SuffixState) -> Any:
        return self.policy.notes(canvas, before.inner, after.inner)
