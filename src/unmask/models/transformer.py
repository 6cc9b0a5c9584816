"""One bidirectional transformer for every family: its blocks offer three primitives and know nothing of caches."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ModelError
from ..core.pace import Pace
from ..core.protocols import Keys
from ..core.rows import Rows
from .attention import attention, attention_weighed, rotate
from .experts import Experts, Mixture
from .kernels import Kernels
from .rope import Scaling, rotary_table


@dataclass(frozen=True)
class Architecture:
    """Everything that a transformer's computation depends on, beside its weights.

    Attributes:
        width: of the hidden states.
        layers, heads, kv_heads: numbers of blocks, of query heads, and of key and value heads.
        ffn: hidden size of the SwiGLU; of the layers without experts, where there are experts.
        vocab: rows of the embedding.
        theta: base of the rotary frequencies.
        eps: of every RMSNorm.
        qkv_bias, o_bias, mlp_bias: which products add a bias.
        tied: the head is the embedding.
        head_dim: size of one head; 0: ``width / heads``.
        rotary_dim: dimensions of a head that are rotated, the first ones; 0: all.
        qk_norm: an RMSNorm of every query and key head before the rotation.
        clip: queries and keys, before the rotation, and values are bounded by this number and its negative; 0: not.
        scaling: of the rotary frequencies.
        experts: what the layers have instead of a SwiGLU; None: no layer has.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    theta: float
    eps: float
    qkv_bias: bool = False
    tied: bool = False
    head_dim: int = 0
    rotary_dim: int = 0
    qk_norm: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    scaling: Scaling | None = None
    clip: float = 0.0
    experts: Experts | None = None

    def __post_init__(self) -> None:
        """Fill in what follows from the rest.

        Raises:
            ModelError: sizes that do not fit each other.
        """
        if not self.head_dim:
            if self.width % self.heads or self.width // self.heads % 2:
                raise ModelError(
                    f"config.json has width {self.width} and {self.heads} heads; the width must be an even multiple of "
                    "the heads, where no size of a head is given"
                )
            object.__setattr__(self, "head_dim", self.width // self.heads)
        if not self.rotary_dim:
            object.__setattr__(self, "rotary_dim", self.head_dim)
        if self.heads % self.kv_heads:
            raise ModelError(
                f"config.json has {self.heads} heads, not a multiple of the {self.kv_heads} key/value heads"
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ModelError(
                f"config.json has heads of size {self.head_dim} of which {self.rotary_dim} dimensions are rotated; "
                "these must be an even number, and no more than the head has"
            )

    def made(self, context: int) -> Transformer:
        """A network of this architecture."""
        return Transformer(self, context)

    @property
    def stacked(self) -> dict[str, dict[str, int]]:
        """Layers computed by one product that checkpoints keep apart: their parts, by rows."""
        kv = self.kv_heads * self.head_dim
        dense = {
            "qkv_proj": {"q": self.heads * self.head_dim, "k": kv, "v": kv},
            "gate_up": {"gate": self.ffn, "up": self.ffn},
        }
        return dense if self.experts is None else dense | self.experts.stacked(self.width)

    def mixed(self, layer: int) -> Experts | None:
        """The experts of a layer; None: it has a SwiGLU."""
        return None if self.experts is None or layer in self.experts.dense else self.experts

    def tensors(self, layer: int) -> dict[str, tuple[str, ...]]:
        """What a block holds in a checkpoint beside experts, ``weight`` alone or with ``bias``, by our names."""
        biased = {**dict.fromkeys("qkv", self.qkv_bias), "o": self.o_bias}
        if self.mixed(layer) is None:
            biased |= dict.fromkeys(("gate", "up", "down"), self.mlp_bias)
        biased |= dict.fromkeys(("attn_norm", "mlp_norm", *(("q_norm", "k_norm") if self.qk_norm else ())), False)
        return {name: ("weight", "bias") if bias else ("weight",) for name, bias in biased.items()}


class Linear(nn.Linear):
    """A product with a weight, and where there is one a bias."""

    def part(self, x: Tensor, begin: int) -> Tensor:
        """The outputs from number ``begin`` on, alone."""
        return F.linear(x, self.weight[begin:], None if self.bias is None else self.bias[begin:])


def linear(inputs: int, outputs: int, bias: bool = False) -> Linear:
    """Every product of the network with its weights, but for the embedding, is made here."""
    return Linear(inputs, outputs, bias)


class Norm(nn.Module):
    """RMSNorm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if hidden.device.type != "cpu" or hidden.element_size() != 2:
            return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        wide = hidden.float()  # what torch does instead, for want of a kernel, takes twice the time of the following
        size: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = (size * size / wide.shape[-1] + self.eps).rsqrt()
        return (wide * inverse).mul_(self.weight.float()).to(hidden.dtype)


class TransformerBlock(nn.Module):
    """Pre-norm attention and SwiGLU, or experts; see :class:`unmask.core.protocols.Block` for the primitives."""

    def __init__(self, arch: Architecture, layer: int = 0) -> None:
        super().__init__()
        d = arch.width
        self.arch, self.layer = arch, layer
        self.kernels = EAGER
        self.attn_norm = Norm(d, arch.eps)
        self.qkv_proj = linear(d, sum(arch.stacked["qkv_proj"].values()), arch.qkv_bias)
        if arch.qk_norm:
            self.q_norm, self.k_norm = Norm(arch.head_dim, arch.eps), Norm(arch.head_dim, arch.eps)
        self.o = linear(arch.heads * arch.head_dim, d, arch.o_bias)
        self.mlp_norm = Norm(d, arch.eps)
        self.make_feed()

    def make_feed(self) -> None:
        """Make the layers that :meth:`mlp` computes with: a mixture of experts, or those of a dense SwiGLU, which
        :attr:`Kernels.feed` knows.
        """
        d, arch, experts = self.arch.width, self.arch, self.arch.mixed(self.layer)
        self.mixture = None if experts is None else Mixture(d, experts, linear)
        if experts is not None:
            return
        self.gate_up = linear(d, 2 * arch.ffn, arch.mlp_bias)
        self.down = linear(arch.ffn, d, arch.mlp_bias)

    def split(self, x: Tensor) -> Tensor:
        """``[..., H * D]`` as ``[..., H, D]``."""
        return x.view(*x.shape[:-1], x.shape[-1] // self.arch.head_dim, self.arch.head_dim)

    def qkv(self, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of ``hidden [B, Q, C]``."""
        return self.kernels.project(self, hidden, rotary)

    def value(self, hidden: Tensor) -> Tensor:
        """Values alone."""
        before = (self.arch.heads + self.arch.kv_heads) * self.arch.head_dim
        return self.bounded(self.split(self.qkv_proj.part(self.attn_norm(hidden), before)))

    def bounded(self, x: Tensor) -> Tensor:
        """Between ``-clip`` and ``clip``, where the architecture has such bounds."""
        return x.clamp(-self.arch.clip, self.arch.clip) if self.arch.clip else x

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> Tensor:
        """Attention and output projection."""
        out: Tensor = self.o(attention(query, key, value, keys))
        return out

    def attend_weighed(self, query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """Attention and output projection, and the heads' mean probabilities."""
        out, weights = attention_weighed(query, key, value, keys)
        return self.o(out), weights

    def weigh(self, query: Tensor, key: Tensor, keys: Keys) -> Tensor:
        """The heads' mean probabilities alone."""
        return attention_weighed(query, key, key, keys)[1]

    def mlp(self, hidden: Tensor) -> Tensor:
        """SwiGLU, or experts, of the normalised input."""
        if self.mixture is None:
            return self.kernels.feed(self, hidden)
        out: Tensor = self.mixture(self.mlp_norm(hidden))
        return out


def _project(block: TransformerBlock, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    arch = block.arch
    turning = arch.heads + arch.kv_heads
    heads = block.split(block.qkv_proj(block.attn_norm(hidden)))
    query_key, value = heads[..., :turning, :], heads[..., turning:, :]
    if arch.qk_norm:
        query, key = query_key[..., : arch.heads, :], query_key[..., arch.heads :, :]
        query_key = torch.cat([block.q_norm(query), block.k_norm(key)], -2)
    query_key, value = block.bounded(query_key), block.bounded(value)
    turned = rotate(query_key, rotary)
    return turned[..., : arch.heads, :], turned[..., arch.heads :, :], value


def _feed(block: TransformerBlock, hidden: Tensor) -> Tensor:
    gate, up = block.gate_up(block.mlp_norm(hidden)).chunk(2, -1)
    out: Tensor = block.down(F.silu(gate).mul_(up))
    return out


EAGER = Kernels(_project, _feed)


class Transformer(nn.Module):
    """Embedding, blocks, final norm and head; the caller runs the blocks through a cache."""

    rotary: Tensor
    kernels: Kernels = EAGER

    def __init__(self, arch: Architecture, context: int) -> None:
        super().__init__()
        self.arch = arch
        self.embed = nn.Embedding(arch.vocab, arch.width, _weight=torch.empty(arch.vocab, arch.width))
        self.blocks = nn.ModuleList(TransformerBlock(arch, i) for i in range(arch.layers))
        self.norm = Norm(arch.width, arch.eps)
        self.head = None if arch.tied else linear(arch.width, arch.vocab)
        if self.embed.weight.is_meta:  # made later; torch calculates on "meta" by torch._dynamo, a second to import
            self.register_buffer("rotary", torch.empty(0), persistent=False)
        else:
            self.make_rotary(context, "cpu")

    def make_rotary(self, context: int, device: torch.device | str) -> None:
        """(Re)make the table of rotary embeddings; one row more than ``context`` for empty slots."""
        arch = self.arch
        table = rotary_table(context + 1, arch.rotary_dim, arch.theta, arch.scaling, device)
        self.register_buffer("rotary", table, persistent=False)

    def use(self, kernels: Kernels) -> None:
        """Let all blocks compute with these functions: ``EAGER``, or what :func:`unmask.models.kernels.compiled` makes
        of them.
        """
        self.kernels = kernels
        for block in self.blocks:
            block.kernels = kernels  # type: ignore[assignment]

    @cached_property
    def _paces(self) -> dict[tuple[Hashable, ...], Pace]:
        return {}

    def pace(self, part: str, *kind: Hashable) -> Pace | None:
        """How fast a part of a forward pass is by number of threads; None where the number shall not change: compiled
        code is made for one number, and beside a GPU threads compute nothing.

        Args:
            part: "layers", ...; the times of these alone are steady enough to tell whether others use the processors.
            kind: what else the time depends on, beside the work.
        """
        if self.kernels.compiled or self.embed.weight.device.type != "cpu":
            return None
        key = (part, *kind)
        return self._paces.get(key) or self._paces.setdefault(key, Pace(alarms=part == "layers"))

    def parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The name and shape of each tensor of a checkpoint, by the parameter whose rows it is (or is a part of)."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        stacked = self.arch.stacked
        for name, parameter in self.named_parameters():
            *path, module, kind = name.split(".")
            split = stacked.get(module, {module: len(parameter)})
            shapes = {part: (rows, *parameter.shape[1:]) for part, rows in split.items()}
            found[name] = {".".join([*path, part, kind]): shape for part, shape in shapes.items()}
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of each tensor of a checkpoint that keeps all parts apart."""
        return {name: shape for parts in self.parts().values() for name, shape in parts.items()}

    def shapes_of(self, names: Collection[str]) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of a checkpoint that has these: parts of parameters, or whole ones."""
        found = self.shapes() | {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}
        return {name: found[name] for name in names}

    def kept(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """What a parameter is kept in where the network calculates in ``dtype``: routers in float32 at least."""
        return torch.promote_types(dtype, torch.float32) if ".router." in name else dtype

    @property
    def idle(self) -> int:
        """Parameters of the experts that one position is not sent to, of all layers."""
        return sum(module.idle for module in self.blocks.modules() if isinstance(module, Mixture))

    @property
    def waits(self) -> bool:
        """Whether layers wait for the device, so that no graph can hold them: experts without a grouped product."""
        return any(not module.grouped for module in self.blocks.modules() if isinstance(module, Mixture))

    def assign(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors that :meth:`parts` names, or whole parameters; empties ``tensors``."""
        for name, parts in self.parts().items():
            if name in tensors:
                continue
            pieces = [tensors.pop(part) for part in parts]
            tensors[name] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self.load_state_dict(tensors, assign=True)
        tensors.clear()

    def rotate_rows(self, rows: Rows, place: Tensor | None = None) -> Tensor:
        """The rotary rows of the positions to compute, ``[B or 1, Q, 2, D]``; ``place [B, Q]``: where others stand."""
        if place is None and rows.whole:
            return self.rotary[None, : rows.total]
        at = rows.position if place is None else place
        return self.rotary[at.clamp(max=len(self.rotary) - 1)]  # empty slots and padding may lie behind the table

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]``, at least float32, of hidden states ``[N, C]``."""
        x = self.norm(hidden)
        out = F.linear(x, self.embed.weight) if self.head is None else self.head(x)
        return out if out.dtype == torch.float64 else out.float()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.embed.weight.device
