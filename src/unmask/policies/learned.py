"""A learned unmasking policy (arXiv 2512.09106): a small transformer, trained by GRPO, says what to commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import blocks, param
from ..core.errors import ModelError
from ..core.nets import Shape, fit, load, put, take
from ..core.pick import best
from ..core.policy import Policy
from ..core.predict import uniform
from ..core.protocols import Ask, Prediction, Sampling

HEADS = 2
_LINEAR: dict[str, Shape] = {  # out, in
    "embed": ("C", 3),
    "query": ("C", "C"),
    "key": ("C", "C"),
    "value": ("C", "C"),
    "attention": ("C", "C"),
    "up": ("F", "C"),
    "down": ("C", "F"),
    "head": (1, "C"),
}
SHAPES: dict[str, Shape] = {
    **{f"{name}.weight": shape for name, shape in _LINEAR.items()},
    **{f"{name}.bias": shape[:1] for name, shape in _LINEAR.items()},
    **{f"norm{i}.{kind}": ("C",) for i in (1, 2, 3) for kind in ("weight", "bias")},
}


@dataclass(frozen=True)
class LearnedState:
    """``[B]``: the requests' ``seed``, forward passes so far (``count``)."""

    seed: Tensor
    count: Tensor


@dataclass(frozen=True)
class Learned(Policy):
    """Commits each position of the block with the probability that a network gives it; if it draws none, the one with
    the largest.

    The network is one transformer block (width 128, two heads, in front of everything a LayerNorm) over the positions
    of the block; its input is the confidence (1 where filled), whether the position is masked, and the time: forward
    passes / response length. ``recipes/policies/learned.py`` trains it by GRPO for right answers in few forward passes.
    Not in the paper: ``sample=false`` commits positions with a probability above 1/2.
    """

    name = "learned"
    paper = "arXiv 2512.09106"

    sample: bool = param(True, "draw the positions; false: those with a probability above 1/2")
    temperature: float = param(1.0, "divisor of the log-odds before drawing", gt=0, le=100)
    block_length: int | None = blocks()
    weights: str | None = param(None, "file with the network's weights; none: those trained for unmask-tiny", file=True)

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        width = fit(self.name, self.network(torch.device("cpu")), SHAPES)["C"]
        if width % (2 * HEADS):
            raise ModelError(f"{self.name}: the width of the weights must be a multiple of {2 * HEADS}, got {width}")

    def init(self, canvas: Canvas, sampling: Sampling) -> LearnedState:
        return LearnedState(sampling.seed, torch.zeros_like(canvas.prompt))

    def ask(self, canvas: Canvas, state: LearnedState) -> Ask:
        return Ask(canvas.block(self.block_length))

    def decide(self, canvas: Canvas, prediction: Prediction, state: LearnedState) -> tuple[Update, LearnedState]:
        confidence, place, total = prediction.confidence, canvas.places(self.block_length), canvas.tokens.shape[1]
        seen, real = self.inputs(canvas, confidence, place, state)
        odds = put(self.odds(self.network(confidence.device), seen, real), place, total)
        odds = torch.where(confidence > -torch.inf, odds, -torch.inf)
        if self.sample:
            # at position -2: no other noise than that of the positions' tokens, nor of a random order (vanilla)
            noise = uniform(state.seed, torch.full_like(state.seed, -2), state.count, total)
            drawn = noise < (odds / self.temperature).sigmoid()
        else:
            drawn = odds > 0
        write = drawn | best(odds) & ~drawn.any(1, keepdim=True)
        return Update(write, prediction.token), replace(state, count=state.count + 1)

    def network(self, device: torch.device) -> dict[str, Tensor]:
        """The network's weights."""
        return load(self.name, self.weights, device)

    @staticmethod
    def inputs(canvas: Canvas, confidence: Tensor, place: Tensor, state: LearnedState) -> tuple[Tensor, Tensor]:
        """What the network reads, ``[B, Q, 3]``, of ``confidence [B, T]`` at the block's places, and which of these are
        real, ``[B, Q]``.
        """
        sure = take(confidence, place, 0.0)
        masks = sure > -torch.inf
        time = state.count.double() / (canvas.length - canvas.prompt)
        seen = torch.stack([torch.where(masks, sure, 1.0), masks.double(), time[:, None].expand_as(sure)], -1)
        return seen, place < confidence.shape[1]

    @staticmethod
    def odds(weights: dict[str, Tensor], seen: Tensor, real: Tensor) -> Tensor:
        """Log-odds of being committed, ``[B, Q]``, for what the network reads; places that are not real are unseen."""

        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        def norm(name: str, x: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

        def heads(name: str, x: Tensor) -> Tensor:
            return linear(name, x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)

        x = linear("embed", seen)
        y = norm("norm1", x)
        query, key, value = rotate(heads("query", y)), rotate(heads("key", y)), heads("value", y)
        score = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        score = score.masked_fill(~real[:, None, None], torch.finfo(score.dtype).min)
        x = x + linear("attention", (score.softmax(-1) @ value).transpose(1, 2).flatten(2))
        x = x + linear("down", F.gelu(linear("up", norm("norm2", x))))
        return linear("head", norm("norm3", x))[..., 0]


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding of ``x [B, H, Q, D]`` at positions 0, 1, ..."""
    half = x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * rate
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], -1)
