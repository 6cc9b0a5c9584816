"""DiffusionGemma's network: one set of weights that encodes text causally and denoises a canvas behind it.

In one forward pass some positions are encoded (the prompt, finished canvases: causal, their keys and values stay) and
those of the canvas are denoised (all of it in sight, and what precedes it). Each layer computes both kinds side by
side; they differ in what they see, in the factor of the layer's output, and in how they are embedded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ModelError
from ..core.protocols import Keys
from ..core.rows import Rows
from .attention import attention, attention_weighed, rotate, wide
from .experts import Experts, Mixture, Router
from .kernels import Kernels
from .transformer import EAGER, Architecture, Norm, Transformer, linear

_QUERIES = 512  # at a time, where they differ in what they see
_STACK = ".mixture.experts_"  # in the names of the experts' weights


@dataclass(frozen=True)
class Heads:
    """The attention of one kind of layers.

    Attributes:
        kv_heads, head_dim: number and size of the key and value heads.
        theta: base of the rotary frequencies, which are those of the whole head.
        turned: pairs of dimensions that are rotated, the first ones.
        window: positions that an encoded one sees, itself included; None: all before it.
    """

    kv_heads: int
    head_dim: int
    theta: float
    turned: int
    window: int | None = None

    def table(self, position: Tensor) -> Tensor:
        """``[B, Q, 2, D]`` float32 cosines and signed sines at ``position [B, Q]``."""
        pairs = self.head_dim // 2
        power = torch.arange(pairs, device=position.device, dtype=torch.float32) * 2 / self.head_dim
        inverse = torch.where(torch.arange(pairs, device=position.device) < self.turned, 1.0 / self.theta**power, 0.0)
        angle = position[..., None].float() * inverse
        cosine, sine = angle.cos(), angle.sin()
        return torch.stack([torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)], -2)


@dataclass(frozen=True)
class GemmaArchitecture(Architecture):
    """An :class:`Architecture` whose layers are of two kinds and have experts beside their feed-forward part.

    Attributes:
        kinds: the :class:`Heads` of each layer.
        cap: the logits' soft bound.
    """

    kinds: tuple[Heads, ...] = ()
    cap: float = 30.0

    @property
    def stacked(self) -> dict[str, dict[str, int]]:
        """See :class:`Architecture`."""
        return {"gate_up": {"gate": self.ffn, "up": self.ffn}}

    def made(self, context: int) -> DiffusionGemma:
        """See :class:`Architecture`."""
        return DiffusionGemma(self)


@dataclass(frozen=True)
class View:
    """What the slots of a forward pass see, and where they stand.

    Attributes:
        canvas: ``[B, Q]`` slots that are denoised; the others are encoded, or empty.
        position: ``[B, Q]``.
        low, high: ``[B, Q]`` by kind of layer: a slot sees the positions from ``low`` to before ``high``.
        tables: by kind, the rotary rows of queries and of keys.
        alike: all slots of a row see the same.
        size: positions of a canvas.
        everything: they see every position that the row's keys hold, in layers without a window.
    """

    canvas: Tensor
    low: dict[Heads, Tensor]
    high: Tensor
    tables: dict[Heads, tuple[Tensor, Tensor]]
    alike: bool
    size: int
    everything: bool

    @staticmethod
    def of(kinds: set[Heads], rows: Rows, start: Tensor, size: int) -> View:
        """Of rows whose canvases of ``size`` positions begin at ``start [B]``."""
        at, begin = rows.position, start[:, None]
        canvas, empty = (at >= begin) & (at < begin + size), at == rows.total
        high = torch.where(canvas, begin + size, at + 1)
        low, tables = {}, {}
        for kind in kinds:
            behind = 0 if kind.window is None else torch.where(canvas, begin, at) - kind.window + 1
            low[kind] = torch.where(empty, 0, behind).clamp(min=0)
            table = kind.table(at)
            tables[kind] = table * kind.head_dim**0.5, table  # attention divides by it: the published one does not
        alike = rows.slots <= size
        return View(canvas, low, high, tables, alike, size, alike and rows.keys is None)


class GemmaRouter(Router):
    """Chooses experts by the residual itself, in float32 at least, and scales their weights."""

    def __init__(self, width: int, experts: Experts, eps: float) -> None:
        super().__init__(width, experts)
        self.eps = eps
        self.scale, self.each = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(experts.count))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts ``[N, K]`` of each of ``x [N, C]``, best first, and their weights."""
        x = bare_norm(wide(x), self.eps) * self.scale * x.shape[-1] ** -0.5
        weight, chosen = F.linear(x, wide(self.weight)).softmax(-1).topk(self.experts.chosen, -1)
        return chosen, weight / weight.sum(-1, keepdim=True) * self.each[chosen]


class GemmaMixture(Mixture):
    """A mixture with a router of its own."""

    def __init__(self, arch: GemmaArchitecture) -> None:
        assert arch.experts is not None
        super().__init__(arch.width, arch.experts, linear)
        self.router = GemmaRouter(arch.width, arch.experts, arch.eps)


class GemmaBlock(nn.Module):
    """One layer; :class:`Seen` has its primitives."""

    def __init__(self, arch: GemmaArchitecture, kind: Heads) -> None:
        super().__init__()
        d, size = arch.width, kind.head_dim
        self.arch, self.kind = arch, kind
        self.attn_norm, self.attn_out_norm = Norm(d, arch.eps), Norm(d, arch.eps)
        self.q, self.k = linear(d, arch.heads * size), linear(d, kind.kv_heads * size)
        self.v = None if kind.window is None else linear(d, kind.kv_heads * size)
        self.o = linear(arch.heads * size, d)
        self.q_norm, self.k_norm = Norm(size, arch.eps), Norm(size, arch.eps)
        self.mlp_norm, self.mlp_out_norm = Norm(d, arch.eps), Norm(d, arch.eps)
        self.gate_up, self.down = linear(d, 2 * arch.ffn), linear(arch.ffn, d)
        self.experts_norm, self.experts_out_norm = Norm(d, arch.eps), Norm(d, arch.eps)
        self.mixture = GemmaMixture(arch)
        self.both_norm = Norm(d, arch.eps)
        self.denoised, self.encoded = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def split(self, x: Tensor) -> Tensor:
        """``[..., H * D]`` as ``[..., H, D]``."""
        return x.view(*x.shape[:-1], -1, self.kind.head_dim)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before their norm and rotation, and values, of normalised ``x``."""
        key = self.split(self.k(x))
        value = key if self.v is None else self.split(self.v(x))
        return key, bare_norm(value, self.arch.eps)

    def feed(self, hidden: Tensor) -> Tensor:
        """The dense part and the experts, side by side, with the norm around both."""
        dense = self.mlp_out_norm(gelu_gated(self, self.mlp_norm(hidden)))
        mixed = self.experts_out_norm(self.mixture(self.experts_norm(hidden), hidden))
        out: Tensor = self.both_norm(dense + mixed)
        return out

    def factor(self, canvas: Tensor) -> Tensor:
        """``[B, Q, 1]`` of the layer's output."""
        return torch.where(canvas, self.denoised, self.encoded)[..., None]


@dataclass(frozen=True)
class Seen:
    """A layer in a forward pass: the primitives of :class:`unmask.core.protocols.Block`, which need know nothing of
    what is encoded and what is denoised. Its ``keys`` and ``rotary`` are the view's.
    """

    block: GemmaBlock
    view: View

    def qkv(self, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values."""
        block, (turn_query, turn_key) = self.block, self.view.tables[self.block.kind]
        x = block.attn_norm(hidden)
        key, value = block.keys_values(x)
        query = rotate(block.q_norm(block.split(block.q(x))), turn_query)
        return query, rotate(block.k_norm(key), turn_key), value

    def value(self, hidden: Tensor) -> Tensor:
        """Values alone."""
        return self.block.keys_values(self.block.attn_norm(hidden))[1]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> Tensor:
        """Attention, output projection and norm; key j is of position j."""
        parts = [attention(query[:, piece], k, v, seen) for piece, k, v, seen in self._pieces(query, key, value)]
        out: Tensor = self.block.attn_out_norm(self.block.o(torch.cat(parts, 1)))
        return out

    def attend_weighed(self, query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """As :meth:`attend`, and the heads' mean probabilities."""
        out, weights = self._weighed(query, key, value)
        return self.block.attn_out_norm(self.block.o(out)), weights

    def weigh(self, query: Tensor, key: Tensor, keys: Keys) -> Tensor:
        """These probabilities alone."""
        return self._weighed(query, key, key)[1]

    def _weighed(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(key.shape[1], device=key.device)
        low, high = self.view.low[self.block.kind][..., None], self.view.high[..., None]
        return attention_weighed(query, key, value, (place >= low) & (place < high))

    def mlp(self, hidden: Tensor) -> Tensor:
        """Feed-forward part and experts."""
        return self.block.feed(hidden)

    def _pieces(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """Some queries at a time, with the keys and values that they may see and a mask of those that they do."""
        view, kind, stored = self.view, self.block.kind, key.shape[1]
        low, high = view.low[kind], view.high
        step = query.shape[1] if view.alike else _QUERIES
        for at in range(0, query.shape[1], step):
            piece = slice(at, at + step)
            # slots are in order: a window begins no earlier than that of the first of them
            reach = stored if kind.window is None else view.size + kind.window - 1 + (0 if view.alike else step)
            if reach < stored:
                place = low[:, at, None] + torch.arange(reach, device=key.device)
                held = place.clamp(max=stored - 1)[..., None, None].expand(-1, -1, *key.shape[2:])
                k, v = key.gather(1, held), value.gather(1, held)
            else:
                place, k, v = torch.arange(stored, device=key.device)[None], key, value
            if view.alike:
                seen = (place >= low[:, :1]) & (place < high[:, :1])
                yield piece, k, v, None if view.everything and kind.window is None else seen
            else:
                own = place[:, None]
                yield piece, k, v, (own >= low[:, piece, None]) & (own < high[:, piece, None])


class SelfConditioning(nn.Module):
    """What the last step has predicted, mixed into the embeddings of a canvas."""

    def __init__(self, arch: GemmaArchitecture) -> None:
        super().__init__()
        self.eps, self.norm = arch.eps, Norm(arch.width, arch.eps)
        self.gate_up, self.down = linear(arch.width, 2 * arch.ffn), linear(arch.ffn, arch.width)

    def forward(self, embedded: Tensor, signal: Tensor) -> Tensor:
        """Both ``[B, Q, C]``; a signal of zeros is none."""
        return bare_norm(embedded + gelu_gated(self, self.norm(signal)), self.eps)


class DiffusionGemma(Transformer):
    """Embedding, layers, norm and tied head, and the self-conditioning of a canvas."""

    def __init__(self, arch: GemmaArchitecture) -> None:
        nn.Module.__init__(self)
        self.arch, self.sizes = arch, arch
        self.embed = nn.Embedding(arch.vocab, arch.width, _weight=torch.empty(arch.vocab, arch.width))
        self.blocks = nn.ModuleList(GemmaBlock(arch, kind) for kind in arch.kinds)
        self.norm, self.head = Norm(arch.width, arch.eps), None
        self.conditioning = SelfConditioning(arch)
        self.register_buffer("rotary", torch.empty(0), persistent=False)

    def make_rotary(self, context: int, device: torch.device | str) -> None:
        """Nothing: two tables for 262144 positions would take 1.5 GiB; see :meth:`Heads.table`."""

    def use(self, kernels: Kernels) -> None:
        """Refuse what is not here.

        Raises:
            ModelError: compiled kernels.
        """
        if kernels is not EAGER:
            raise ModelError("compile: the layers of diffusion_gemma are not compiled; load it without")

    def shapes_of(self, names: Collection[str]) -> dict[str, tuple[int, ...]]:
        """See :class:`Transformer`; a checkpoint keeps the experts' weights apart in a dimension of their own."""
        experts = self.arch.experts
        assert experts is not None
        found = super().shapes_of(names)
        for name, shape in found.items():
            if _STACK in name:
                found[name] = (experts.count, shape[0] // experts.count, *shape[1:])
        return found

    def assign(self, tensors: dict[str, Tensor]) -> None:
        """See :class:`Transformer`."""
        for name, tensor in tensors.items():
            if _STACK in name:
                tensors[name] = tensor.flatten(0, 1)
        super().assign(tensors)

    def scaled(self, x: Tensor) -> Tensor:
        """Embeddings ``[..., C]`` as the layers are given them."""
        return x * torch.tensor(self.arch.width**0.5, dtype=x.dtype, device=x.device)

    def inputs(self, ids: Tensor, canvas: Tensor, signal: Tensor) -> Tensor:
        """What the first layer is given: ``ids [B, Q]``, of which ``canvas [B, Q]`` are denoised with ``signal``."""
        embedded = self.scaled(self.embed(ids))
        return torch.where(canvas[..., None], self.conditioning(embedded, signal), embedded)

    def signal(self, logits: Tensor) -> Tensor:
        """``[N, C]`` what a step hands to the next: the mean embedding of its prediction, of ``logits [N, V]``."""
        share = logits.to(self.dtype).softmax(-1, dtype=torch.promote_types(self.dtype, torch.float32)).to(self.dtype)
        return self.scaled(share @ self.embed.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """See :class:`Transformer`; bounded softly, in float32 at least."""
        return super().logits(hidden).div_(self.sizes.cap).tanh_().mul_(self.sizes.cap)


def bare_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm of the last dimension, without weights."""
    return F.rms_norm(x, x.shape[-1:], None, eps)


def gelu_gated(layer: Any, x: Tensor) -> Tensor:
    """Its ``gate_up`` and ``down`` with the tanh form of GELU between them."""
    gate, up = layer.gate_up(x).chunk(2, -1)
    out: Tensor = layer.down(F.gelu(gate, approximate="tanh") * up)
    return out
