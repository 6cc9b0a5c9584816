"""Dream's schedules: so many positions per forward by a clock that runs from 1 to eps (arXiv 2508.15487)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import param
from ..core.pick import block_steps, top
from ..core.predict import gumbel, uniform
from ..core.protocols import Ask, PolicyBase, Prediction, Sampling
from ..core.state import PER_POSITION


@dataclass(frozen=True)
class DreamState:
    """One value per row unless said otherwise.

    Attributes:
        clock: ``[B, S + 1]`` float32 times t_0 = 1 ... t_steps = eps of a block; 0 behind a row's own.
        steps: ``[B]`` of a block's schedule.
        step: ``[B]`` the step of the block that the next forward belongs to.
        skipped: ``[B]`` steps left out just before it, because they commit nothing.
        due: ``[B, T]`` the step at which each position is committed, drawn beforehand (``origin`` only).
        seed: ``[B]``.
    """

    clock: Tensor
    steps: Tensor
    step: Tensor
    skipped: Tensor
    due: Tensor = field(metadata=PER_POSITION)
    seed: Tensor


@dataclass(frozen=True)
class Dream(PolicyBase):
    """A block (by default the whole response) in its share of ``steps``. Of its m masks, the step from t to s commits
    m (1 - s/t).

    ``origin``: each mask with probability 1 - s/t. The others: floor(m (1 - s/t)) masks, all in the last step, ranked
    by the probability of the proposed token (``maskgit_plus``), its lead over the second (``topk_margin``) or negative
    entropy (``entropy``). Steps that commit nothing take no forward.
    """

    name = "dream"
    paper = "arXiv 2508.15487"

    steps: int | None = param(None, "steps of the schedule; none: one per token of the response", ge=1)
    alg: str = param(
        "maskgit_plus",
        "what ranks the masks: probability | lead over the second | entropy | nothing",
        choices=("maskgit_plus", "topk_margin", "entropy", "origin"),
    )
    alg_temp: float = param(0.0, "above 0: draw positions by softmax(rank / alg_temp) instead of taking the best", ge=0)
    block_length: int | None = param(None, "positions per block; none: the whole response is one block", ge=1)
    opening: str = param(
        "clock",
        "a block's first step commits by the clock, or its first position (Fast-dLLM's code for caches)",
        choices=("clock", "first"),
    )
    eps: float = param(1e-3, "time of the last step", gt=0, le=0.5)

    @property
    def needs(self) -> frozenset[str]:
        """What the ranking looks at."""
        extra = {"topk_margin": {"margin"}, "entropy": {"entropy"}}
        return frozenset({"tempered"} | extra.get(self.alg, set()))

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        """Blocks must share ``steps`` evenly; raises RequestError."""
        block_steps(self, torch.tensor([gen_length]))

    def init(self, canvas: Canvas, sampling: Sampling) -> DreamState:
        """Each row's clock."""
        length = canvas.length - canvas.prompt
        steps = block_steps(self, length)
        clocks = [torch.linspace(1, self.eps, n + 1) for n in steps.tolist()]
        clock = pad_sequence(clocks, batch_first=True).to(length.device)
        zero = torch.zeros_like(length)
        due = canvas.tokens.new_zeros((len(length), 0))
        if self.alg == "origin":
            draw = uniform(sampling.seed, zero - 1, zero, canvas.tokens.shape[1]).float()
            due = (draw[:, None] <= clock[:, 1:, None]).sum(1).clamp(max=steps[:, None] - 1)
        state = DreamState(clock, steps, zero, zero, due, sampling.seed)
        return self._next(state, canvas)

    def _next(self, state: DreamState, canvas: Canvas) -> DreamState:
        """Go to the first step, from ``state.step`` on, that commits something in the current block."""
        masked = canvas.block(self.block_length) & canvas.masked
        place = torch.arange(state.clock.shape[1] - 1, device=masked.device)
        coming = (place >= state.step[:, None]) & (place < state.steps[:, None])
        if self.alg == "origin":
            works = ((state.due[:, None] == place[:, None]) & masked[:, None]).any(2)
        else:
            works = self._quota(state, masked) >= 1
        if self.opening == "first":
            works = works | (place == 0)
        works = works & coming
        step = torch.where(works, place, state.clock.shape[1]).amin(1)
        step = torch.where(works.any(1), step, state.step)
        return replace(state, step=step, skipped=step - state.step)

    def _quota(self, state: DreamState, masked: Tensor) -> Tensor:
        """``[B, S]`` positions that each step would commit now; the last all there are."""
        masks = masked.sum(1, keepdim=True)
        share = 1.0 - state.clock[:, 1:] / state.clock[:, :-1].clamp(min=torch.finfo(torch.float32).tiny)
        place = torch.arange(share.shape[1], device=masked.device)
        return torch.where(place >= state.steps[:, None] - 1, masks, (masks.float() * share).floor().long())

    def ask(self, canvas: Canvas, state: DreamState) -> Ask:
        """The current block."""
        block = canvas.block(self.block_length)
        ranked = self.alg != "origin" and not self.alg_temp and self.opening == "clock"
        return Ask(block, skipped=state.skipped, optional=block if ranked else None)

    def decide(self, canvas: Canvas, prediction: Prediction, state: DreamState) -> tuple[Update, DreamState]:
        """Commit this step's share."""
        open_ = prediction.confidence > -torch.inf
        if self.alg == "origin":
            write = open_ & (state.due <= state.step[:, None])
        else:
            now = state.step.clamp(max=state.clock.shape[1] - 2)  # rows that are done have passed their last step
            masked = canvas.block(self.block_length) & canvas.masked
            quota = self._quota(state, masked).gather(1, now[:, None])[:, 0]
            write = top(self._score(prediction, state, open_), quota)
        if self.opening == "first":
            first = open_ & (canvas.position == canvas.frontier[:, None])
            write = torch.where((state.step == 0)[:, None], first, write)
        update = Update(write, prediction.token)
        after = canvas.apply(update)
        same = after.block_start(self.block_length) == canvas.block_start(self.block_length)
        return update, self._next(replace(state, step=torch.where(same, state.step + 1, 0)), after)

    def _score(self, prediction: Prediction, state: DreamState, open_: Tensor) -> Tensor:
        """``[B, T]`` what the masks are ranked by."""
        score = prediction.confidence
        if prediction.margin is not None:
            score = prediction.margin
        if prediction.entropy is not None:
            score = -prediction.entropy
        if self.alg_temp:
            noise = gumbel(state.seed, torch.full_like(state.step, -1), state.step, score.shape[1])
            score = score.double() / self.alg_temp + noise
        return torch.where(open_, score.double(), -torch.inf)
