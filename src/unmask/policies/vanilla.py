"""The baseline: a fixed number of tokens per forward pass (LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import blocks, param
from ..core.pick import block_steps, top
from ..core.policy import Policy
from ..core.predict import uniform
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class VanillaState:
    """All ``[B]``: ``steps`` per block, ``start`` of the current block, forward passes in it (``step``), masked
    positions it began with (``masks``), ``seed`` and forward passes so far (``count``).
    """

    steps: Tensor
    start: Tensor
    step: Tensor
    masks: Tensor
    seed: Tensor
    count: Tensor


@dataclass(frozen=True)
class Vanilla(Policy):
    """Semi-autoregressive decoding: blocks left to right, each filled in steps / blocks forward passes.

    Of a block with m masked positions and n forward passes each commits the floor(m / n) most confident positions, the
    first m mod n passes one more. The default is one token per forward pass.
    """

    name = "vanilla"
    paper = "arXiv 2502.09992"

    steps: int | None = param(None, "forward passes for the whole response; none: one per token", ge=1)
    block_length: int | None = blocks()
    remasking: str = param(
        "low_confidence",
        "positions that stay masked: the least confident ones, or random ones",
        choices=("low_confidence", "random"),
    )
    cfg_scale: float = param(
        0.0, "classifier-free guidance scale; 0: off (else a forward pass costs two)", ge=0, le=100
    )

    @property
    def paced(self) -> bool:
        return self.steps is not None

    @property
    def spans(self) -> bool:
        return self.steps is None

    @property
    def guidance(self) -> float:
        return self.cfg_scale

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        block_steps(self, torch.tensor([gen_length]), spec)

    def init(self, canvas: Canvas, sampling: Sampling) -> VanillaState:
        length = canvas.wanted - canvas.prompt
        steps = block_steps(self, length, canvas.spec)
        zero = torch.zeros_like(length)
        return VanillaState(steps, zero - 1, zero, zero, sampling.seed, zero)

    def ask(self, canvas: Canvas, state: VanillaState) -> Ask:
        block = canvas.block(self.block_length)
        return Ask(block, optional=block if self.remasking == "low_confidence" else None)

    def decide(self, canvas: Canvas, prediction: Prediction, state: VanillaState) -> tuple[Update, VanillaState]:
        open_ = prediction.confidence > -torch.inf
        start = canvas.block_start(self.block_length)
        fresh = start != state.start
        step = torch.where(fresh, 0, state.step)
        left = open_ if self.steps is None else canvas.block(self.block_length) & canvas.masked  # predicted or not
        masks = torch.where(fresh, left.sum(1), state.masks)
        quota = masks // state.steps + (step < masks % state.steps)
        score = prediction.confidence
        if self.remasking == "random":
            noise = uniform(state.seed, torch.full_like(start, -1), state.count, score.shape[1])
            score = torch.where(open_, noise, -torch.inf)
        single = self.steps is None
        write = top(score, 1 if single else quota.clamp(min=1))
        after = VanillaState(state.steps, start, step + 1, masks, state.seed, state.count + 1)
        return Update(write, prediction.token), after
