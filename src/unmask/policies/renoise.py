"""DiffusionGemma's sampler: accept what a bound on the entropy allows, draw the rest of the canvas anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.canvas import NO_MASK, Canvas, ModelSpec, Update
from ..core.config import param
from ..core.errors import RequestError
from ..core.policy import Policy
from ..core.predict import uniform
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION

_NOISE = 0x3C6EF372FE94F82A  # keeps the noise of canvases apart from that of samples, which have the same counters


@dataclass(frozen=True)
class RenoiseState:
    """Attributes:
    draft: ``[B, T]`` what the canvas holds where it is open.
    likely: ``[B, T]`` the likeliest tokens of the step before; -1 where there was none.
    same: ``[B]`` steps in which these have not changed.
    left: ``[B]`` steps left of the current canvas.
    seed, drawn: ``[B]`` of the noise, and how often it was drawn.
    """

    draft: Tensor = field(metadata=PER_POSITION)
    likely: Tensor = field(metadata=PER_POSITION)
    same: Tensor
    left: Tensor
    seed: Tensor
    drawn: Tensor


@dataclass(frozen=True)
class Renoise(Policy):
    """Denoises one canvas after the other, for models without a mask token.

    A canvas begins as uniform noise. Each step predicts all of it at a temperature that falls from ``t_max`` to
    ``t_min``, accepts sampled tokens by ascending entropy as long as the entropies of those before add up to no more
    than ``entropy_bound``, and draws all others anew; what was accepted before has to be accepted again. The canvas is
    done when its likeliest tokens have stayed the same for ``stability`` steps and their mean entropy is below
    ``confidence``, or after ``steps``. Then its likeliest tokens are committed, up to an end of text.
    """

    name = "renoise"
    paper = "-"
    refuses = "models that have a mask token"

    entropy_bound: float = param(0.1, "bound in nats on the entropies of the tokens accepted, less the last", ge=0)
    steps: int = param(48, "most denoising steps of a canvas", ge=1)
    t_min: float = param(0.4, "temperature after the last step", gt=0)
    t_max: float = param(0.8, "temperature of the first step", gt=0)
    stability: int = param(1, "steps that must not change the likeliest tokens; 0: they may change", ge=0)
    confidence: float = param(0.005, "mean entropy in nats below which a canvas may be done early", ge=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy", "drawn"})

    @property
    def renoises(self) -> bool:
        return True

    def most_passes(self, positions: int) -> int:
        return positions * self.steps

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        if spec.mask != NO_MASK or spec.block is None:
            raise RequestError(
                f"{self} draws the tokens of a canvas anew, for models that denoise uniform noise; this model fills "
                f"masked positions (its mask token is {spec.mask}); use another policy, such as slowfast or threshold"
            )

    def init(self, canvas: Canvas, sampling: Sampling) -> RenoiseState:
        zero, nothing = torch.zeros_like(canvas.prompt), torch.full_like(canvas.tokens, -1)
        state = RenoiseState(nothing, nothing, zero, zero + self.steps, sampling.seed, zero)
        return self._noised(canvas, canvas.prompt, state)

    def ask(self, canvas: Canvas, state: RenoiseState) -> Ask:
        size = canvas.spec.block or 1
        heat = self.t_min + (self.t_max - self.t_min) * state.left.double() / self.steps
        seen = canvas.position < canvas.block_start(size)[:, None] + size
        return Ask(canvas.block(size), visible=seen, draft=state.draft, heat=heat)

    def decide(self, canvas: Canvas, prediction: Prediction, state: RenoiseState) -> tuple[Update, RenoiseState]:
        assert prediction.entropy is not None
        assert prediction.drawn is not None
        size, open_ = canvas.spec.block or 1, prediction.confidence > -torch.inf
        accepted = within_bound(prediction.entropy, open_, self.entropy_bound)
        likely = torch.where(open_, prediction.token, -1)
        same = torch.where((~open_ | (likely == state.likely)).all(1), state.same + 1, 0)
        mean = prediction.entropy.sum(1) / open_.sum(1).clamp(min=1)
        done = (same >= self.stability) & (mean < self.confidence) | (state.left <= 1)
        ends = canvas.is_eos(likely) & canvas.closing & canvas.eos_stop[:, None]
        write = open_ & done[:, None] & (canvas.position <= canvas.first(ends)[:, None])
        start = canvas.block_start(size) + torch.where(done, size, 0)
        after = replace(
            state,
            likely=torch.where(done[:, None], -1, likely),
            same=torch.where(done, 0, same),
            left=torch.where(done, self.steps, state.left - 1),
        )
        after = self._noised(canvas, start, after)
        kept = torch.where(accepted & ~done[:, None], prediction.drawn, after.draft)
        return Update(write, prediction.token), replace(after, draft=kept)

    def _noised(self, canvas: Canvas, start: Tensor, state: RenoiseState) -> RenoiseState:
        """The state with new noise in the canvas that begins at ``start [B]``."""
        size, total = canvas.spec.block or 1, canvas.tokens.shape[1]
        place = (start[:, None] + torch.arange(size, device=start.device)).clamp(max=total)
        noise = self.noise(place, state, canvas.spec.vocab)
        draft = F.pad(state.draft, (0, 1)).scatter(1, place, noise)[:, :total]
        return replace(state, draft=draft, drawn=state.drawn + 1)

    def noise(self, place: Tensor, state: RenoiseState, vocab: int) -> Tensor:
        """Ids ``[B, C]``, each as likely as any other, at the positions ``place [B, C]``."""
        many = place.shape[1]
        seed, drawn = ((x[:, None].expand(-1, many)).flatten() for x in (state.seed ^ _NOISE, state.drawn))
        share = uniform(seed, place.flatten(), drawn, 1)
        return (share * vocab).long().view_as(place)

    def notes(self, canvas: Canvas, before: RenoiseState, after: RenoiseState) -> dict[str, Tensor]:
        start = canvas.block_start(canvas.spec.block)
        return {"start": start, "end": start + (canvas.spec.block or 0), "left": before.left}


def within_bound(entropy: Tensor, open_: Tensor, bound: float) -> Tensor:
    """``[B, T]`` open positions by ascending entropy, as long as the entropies of those before reach no more than
    ``bound`` (EB-Sampler, arXiv 2505.24857: their sum less the largest bounds what they know of each other).
    """
    ranked, order = torch.where(open_, entropy, torch.inf).sort(dim=1, stable=True)
    before = F.pad(ranked.cumsum(1)[:, :-1], (1, 0))
    return torch.zeros_like(open_).scatter(1, order, before <= bound) & open_
