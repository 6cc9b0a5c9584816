"""One forward of a model to be measured: the whole of it, its matrix products alone, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.core.cache import Cache
from unmask.core.canvas import Canvas, ModelSpec
from unmask.core.protocols import Ask, Block, Geometry, Plan, Sampling
from unmask.core.rows import Rows, gather
from unmask.core.store import Store, attend_stored, visible
from unmask.models.attention import attention
from unmask.models.denoiser import Denoiser
from unmask.models.kernels import compiled
from unmask.models.quantised import Int8Linear, Quantised
from unmask.models.transformer import EAGER, Transformer

ASKED = 32  # positions per row whose logits are wanted: a usual block
PARTS = ("norm", "qkv, rotary", "attention", "output", "mlp", "head")
_SCORES_AT_ONCE = {False: 1 << 21, True: 1 << 27}  # elements of the bare products' scores, on a CPU and on a GPU
_LEAST_QUERIES = 512


@dataclass(frozen=True)
class Size:
    """What is measured: canvases of ``length`` T positions, ``rows`` B of them, ``computed`` Q positions of each (the
    last; keys and values of the others are stored), of which the last ``asked`` get logits.
    """

    length: int
    rows: int
    computed: int

    @property
    def asked(self) -> int:
        """The last block."""
        return min(ASKED, self.computed, self.length - 1)


class Forward:
    """One forward through the engine, as policies and caches cause it."""

    def __init__(self, model: Denoiser, size: Size) -> None:
        self.model = model
        device = model.network.device
        canvas = _canvas(model.spec, size).to(device)
        shape = canvas.shape
        compute = torch.arange(size.length, device=device).expand(shape) >= size.length - size.computed
        many = (shape[0],)
        prompt = torch.full(many, size.length - size.asked, device=device)
        yes, no = torch.ones(many, device=device).bool(), torch.zeros(shape, device=device).bool()
        whole, held = torch.full_like(prompt, size.length), torch.full_like(prompt, -1)
        self.canvas = Canvas(canvas, prompt, whole, whole, whole, held, held + 1, ~yes, no, model.spec)
        self.cache = Stored(compute)
        self.ask = Ask(self.canvas.response)
        self.state = model.init(self.canvas, self.cache)
        zero = torch.zeros(many, device=device, dtype=torch.float64)
        self.sampling = Sampling(zero, zero + 1, zero.long(), zero.long(), samples=False, filters=False, delays=False)
        self.step = zero.long()
        rows = gather(compute, self.canvas.valid)
        self.rows = replace(rows, rotary=model.network.rotate_rows(rows))

    def __call__(self) -> Any:
        """Run it."""
        return self.model(self.canvas, self.ask, self.cache, self.state, self.sampling, self.step)


def _canvas(spec: ModelSpec, size: Size) -> Tensor:
    """``[B, T]`` some tokens and, at the end, masks."""
    words = [i for i in range(min(spec.limit, spec.vocab)) if i != spec.mask]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.tensor(words)[torch.randint(len(words), (size.rows, size.length), generator=draw)]
    tokens[:, size.length - size.asked :] = spec.mask
    return tokens


@dataclass(frozen=True)
class Stored(Cache):
    """A cache that computes ``compute [B, T]``: what any cache costs, less its choice. Whole canvases need no store."""

    compute: Tensor
    name = "stored"
    paper = "-"

    @cached_property
    def whole(self) -> bool:
        """Whether nothing is stored. Read in every layer: found out once."""
        return bool(self.compute.all())

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> Store:
        """Zeros: what is stored makes no difference to the time."""
        return Store.empty(canvas, geometry, like)

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: Store) -> tuple[Plan, Store]:
        """Always the same."""
        return Plan(self.compute, visible(canvas, ask, need), self.compute.sum(1)), state

    def layer(self, index: int, block: Block, hidden: Tensor, rows: Rows, state: Store) -> Tensor:
        """The ordinary layer, against the store if there is one."""
        if not self.whole:
            return attend_stored(index, block, hidden, rows, state)
        hidden = hidden + block.attend(*block.qkv(hidden, rows.rotary), rows.among)
        return hidden + block.mlp(hidden)


class Switched:
    """A forward with compiled parts, on the same weights."""

    def __init__(self, network: Transformer, forward: Forward) -> None:
        self.network, self.forward = network, forward
        self.kernels = compiled(EAGER, network.device.type)

    def __call__(self) -> Any:
        """Run it; the network is as it was afterwards."""
        self.network.use(self.kernels)
        try:
            return self.forward()
        finally:
            self.network.use(EAGER)


class Products:
    """The matrix products of a forward and nothing else: every layer's weights, in the same dtype."""

    def __init__(self, network: Transformer, size: Size) -> None:
        arch, self.network = network.arch, network
        like = _random(network)
        self.hidden = like(size.rows * size.computed, arch.width)
        self.inner = like(size.rows * size.computed, arch.ffn)
        self.attended = like(size.rows * size.computed, arch.heads * arch.head_dim)
        self.asked = self.hidden.view(size.rows, size.computed, -1)[:, -size.asked :].reshape(-1, arch.width)
        groups, many = arch.heads // arch.kv_heads, size.rows * arch.kv_heads
        self.query = like(many, groups * size.computed, arch.head_dim)
        self.key, self.value = like(many, arch.head_dim, size.length), like(many, size.length, arch.head_dim)

    def __call__(self) -> Tensor:
        """Run them."""
        for block in self.network.blocks:
            for linear, given in ((block.qkv_proj, self.hidden), (block.o, self.attended)):
                bare(linear, given)
            if block.mixture is not None:  # sorting included, for there is no other way to multiply
                block.mixture(self.hidden)  # type: ignore[operator]
            else:
                bare(block.gate_up, self.hidden)
                bare(block.down, self.inner)
            self._attend()
        head = self.network.embed if self.network.head is None else self.network.head
        return F.linear(self.asked, head.weight)

    def _attend(self) -> None:
        """Scores and what they weigh, some heads and queries at a time: all at once they fall out of the cache."""
        many, queries = self.query.shape[:2]
        most, stored = _SCORES_AT_ONCE[self.query.is_cuda], self.key.shape[2]
        heads = max(1, most // (queries * stored))
        count = max(_LEAST_QUERIES, most // (heads * stored))
        for at in range(0, many, heads):
            some = slice(at, at + heads)
            for first in range(0, queries, count):
                score = torch.bmm(self.query[some, first : first + count], self.key[some])
                torch.bmm(score, self.value[some])


def bare(linear: Any, given: Tensor) -> Tensor:
    """A product alone: of integers without the rounding of its inputs, where weights are in 8 bits."""
    if isinstance(linear, Int8Linear):
        return linear.product(given.to(torch.int8), given.dtype)
    return linear(given) if isinstance(linear, Quantised) else F.linear(given, linear.weight)


class Parts:
    """The parts of a forward, each for all layers, on hidden states drawn at random."""

    def __init__(self, network: Transformer, size: Size, rows: Rows) -> None:
        arch, self.network, self.rows = network.arch, network, rows
        like = _random(network)
        self.hidden = like(size.rows, size.computed, arch.width)
        self.attended = like(size.rows, size.computed, arch.heads * arch.head_dim)
        self.asked = like(size.rows * size.asked, arch.width)
        self.query = like(size.rows, size.computed, arch.heads, arch.head_dim)
        self.key, self.value = (like(size.rows, size.length, arch.kv_heads, arch.head_dim) for _ in range(2))

    def calls(self) -> dict[str, Callable[[], object]]:
        """By ``PARTS``; those of q, k, v and the MLP include their norms."""
        blocks: Any = self.network.blocks
        every = {
            "norm": lambda b: (b.attn_norm(self.hidden), b.mlp_norm(self.hidden)),
            "qkv, rotary": lambda b: b.qkv(self.hidden, self.rows.rotary),
            "attention": lambda b: attention(self.query, self.key, self.value, self.rows.keys),
            "output": lambda b: b.o(self.attended),
            "mlp": lambda b: b.mlp(self.hidden),
        }

        def through(part: Callable[[Any], object]) -> Callable[[], object]:
            def run() -> None:
                for block in blocks:
                    part(block)

            return run

        return {name: through(part) for name, part in every.items()} | {"head": lambda: self.network.logits(self.asked)}


def _random(network: Transformer) -> Callable[..., Tensor]:
    """Makes tensors of a shape, in the network's dtype and on its device."""
    return lambda *shape: torch.randn(shape, device=network.device, dtype=network.dtype)
