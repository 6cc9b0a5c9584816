"""Dream's schedules: so many positions per forward by a clock that runs from 1 to eps (arXiv 2508.15487)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import blocks, param
from ..core.pick import block_steps, top
from ..core.policy import Policy
from ..core.predict import gumbel, uniform
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION

_SEARCHED = 64  # steps looked at for the next one that commits something


@dataclass(frozen=True)
class DreamState:
    """One value per row unless said otherwise.

    Attributes:
        steps: ``[B]`` of a block's schedule.
        step: ``[B]`` the step of the block that the next forward pass belongs to.
        skipped: ``[B]`` steps left out just before it, because they commit nothing.
        due: ``[B, T]`` the step at which each position is committed, drawn beforehand (``origin`` only).
        seed: ``[B]``.
    """

    steps: Tensor
    step: Tensor
    skipped: Tensor
    due: Tensor = field(metadata=PER_POSITION)
    seed: Tensor


@dataclass(frozen=True)
class Dream(Policy):
    """Fills a block (by default the response) in its share of ``steps``: of m masked positions the step from time t to
    s commits m (1 - s/t).

    ``origin``: each masked position with probability 1 - s/t. The others: floor(m (1 - s/t)) positions, all that are
    left in the last step, ranked by top-1 probability (``maskgit_plus``), margin (``topk_margin``) or negative entropy
    (``entropy``). Steps that commit nothing take no forward pass.
    """

    name = "dream"
    paper = "arXiv 2508.15487"
    paced = True

    steps: int | None = param(None, "steps of the schedule; none: one per token of the response", ge=1)
    alg: str = param(
        "maskgit_plus",
        "positions are ranked by top-1 probability | margin | entropy | nothing",
        choices=("maskgit_plus", "topk_margin", "entropy", "origin"),
    )
    alg_temp: float = param(0.0, "above 0: draw positions by softmax(rank / alg_temp)", ge=0)
    block_length: int | None = blocks(None)
    opening: str = param(
        "clock",
        "a block's first step commits by the clock, or its first position (Fast-dLLM's code for caches)",
        choices=("clock", "first"),
        hidden=True,
    )
    eps: float = param(1e-3, "time of the last step", gt=0, le=0.5)

    @property
    def needs(self) -> frozenset[str]:
        extra = {"topk_margin": {"margin"}, "entropy": {"entropy"}}
        return frozenset({"tempered"} | extra.get(self.alg, set()))

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        block_steps(self, torch.tensor([gen_length]), spec)

    def init(self, canvas: Canvas, sampling: Sampling) -> DreamState:
        length = canvas.length - canvas.prompt
        steps = block_steps(self, length, canvas.spec)
        zero = torch.zeros_like(length)
        due = canvas.tokens.new_zeros((len(length), 0))
        if self.alg == "origin":
            draw = uniform(sampling.seed, zero - 1, zero, canvas.tokens.shape[1])
            due = ((1 - draw) / (1 - self.eps) * steps[:, None]).long().minimum(steps[:, None] - 1)
        return self._next(DreamState(steps, zero, zero, due, sampling.seed), canvas)

    def _next(self, state: DreamState, canvas: Canvas) -> DreamState:
        """Go to the first step, from ``state.step`` on, that commits something in the current block."""
        masked = canvas.block(self.block_length) & canvas.masked
        if self.alg == "origin":
            coming = masked & (state.due >= state.step[:, None])
            step = torch.where(coming, state.due, state.steps[:, None]).amin(1)
        else:
            # m (1 - s/t) reaches 1 at t = m (1 - eps) / steps, some steps of rounding aside, or in the last step
            count = masked.sum(1)
            near = (state.steps.double() / (1 - self.eps) - count).long() - _SEARCHED // 2
            near = torch.minimum(near, state.steps - _SEARCHED).maximum(state.step)
            place = near[:, None] + torch.arange(_SEARCHED, device=masked.device)
            works = (self._quota(place, state.steps[:, None], count[:, None]) >= 1) & (place < state.steps[:, None])
            step = torch.where(works, place, state.steps[:, None]).amin(1)
        step = torch.where((step < state.steps) & masked.any(1), step, state.step)
        if self.opening == "first":
            step = torch.where(state.step == 0, 0, step)
        return replace(state, step=step, skipped=step - state.step)

    def _quota(self, step: Tensor, steps: Tensor, masks: Tensor) -> Tensor:
        """Positions that a step of a schedule would commit of so many masked positions; the last all there are."""
        share = 1.0 - self._time(step + 1, steps) / self._time(step, steps)
        return torch.where(step >= steps - 1, masks, (masks.float() * share).floor().long())

    def _time(self, step: Tensor, steps: Tensor) -> Tensor:
        """Float32 time of a step, from 1 to ``eps``, rounded as in the schedule of the published code."""
        eps = torch.full((), self.eps, dtype=torch.float32, device=step.device)
        each = ((eps - 1) / steps).double()
        return torch.where(step < (steps + 1) // 2, 1 + each * step, eps.double() - each * (steps - step)).float()

    def ask(self, canvas: Canvas, state: DreamState) -> Ask:
        block = canvas.block(self.block_length)
        ranked = self.alg != "origin" and not self.alg_temp and self.opening == "clock"
        return Ask(block, skipped=state.skipped, optional=block if ranked else None)

    def decide(self, canvas: Canvas, prediction: Prediction, state: DreamState) -> tuple[Update, DreamState]:
        open_ = prediction.confidence > -torch.inf
        if self.alg == "origin":
            write = open_ & (state.due <= state.step[:, None])
        else:
            masks = (canvas.block(self.block_length) & canvas.masked).sum(1)
            write = top(self._score(prediction, state, open_), self._quota(state.step, state.steps, masks))
        if self.opening == "first":
            first = open_ & (canvas.position == canvas.frontier[:, None])
            write = torch.where((state.step == 0)[:, None], first, write)
        update = Update(write, prediction.token)
        after = canvas.apply(update)
        same = after.block_start(self.block_length) == canvas.block_start(self.block_length)
        return update, self._next(replace(state, step=torch.where(same, state.step + 1, 0)), after)

    def _score(self, prediction: Prediction, state: DreamState, open_: Tensor) -> Tensor:
        """``[B, T]`` what the masked positions are ranked by."""
        score = prediction.confidence
        if prediction.margin is not None:
            score = prediction.margin
        if prediction.entropy is not None:
            score = -prediction.entropy
        if self.alg_temp:
            noise = gumbel(state.seed, torch.full_like(state.step, -1), state.step, score.shape[1])
            score = score.double() / self.alg_temp + noise
        return torch.where(open_, score.double(), -torch.inf)
