"""One bidirectional transformer for every family: its blocks offer three primitives and know nothing of caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.rows import Rows
from .attention import attention, attention_weighed, rotary_table, rotate
from .kernels import Kernels


@dataclass(frozen=True)
class Architecture:
    """Sizes of a transformer: ``width`` d, ``layers``, ``heads``, ``kv_heads``, ``ffn`` (SwiGLU hidden size), ``vocab``
    rows of the embedding, ``theta`` of the rotary embedding, ``eps`` of RMSNorm, ``bias`` on q/k/v, ``tied`` head.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    theta: float
    eps: float
    bias: bool = False
    tied: bool = False

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.width // self.heads

    @property
    def stacked(self) -> dict[str, dict[str, int]]:
        """Layers computed by one product that checkpoints keep apart: their parts, by rows."""
        kv = self.kv_heads * self.head_dim
        return {"qkv_proj": {"q": self.width, "k": kv, "v": kv}, "gate_up": {"gate": self.ffn, "up": self.ffn}}


class Norm(nn.Module):
    """RMSNorm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class TransformerBlock(nn.Module):
    """Pre-norm attention and SwiGLU; see :class:`unmask.core.protocols.Block` for the primitives."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        d = arch.width
        self.arch = arch
        self.kernels = EAGER
        self.attn_norm = Norm(d, arch.eps)
        self.qkv_proj = nn.Linear(d, sum(arch.stacked["qkv_proj"].values()), bias=arch.bias)
        self.o = nn.Linear(d, d, bias=False)
        self.mlp_norm = Norm(d, arch.eps)
        self.gate_up = nn.Linear(d, 2 * arch.ffn, bias=False)
        self.down = nn.Linear(arch.ffn, d, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """``[..., H * D]`` as ``[..., H, D]``."""
        return x.view(*x.shape[:-1], x.shape[-1] // self.arch.head_dim, self.arch.head_dim)

    def qkv(self, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of ``hidden [B, Q, C]``."""
        return self.kernels.project(self, hidden, rotary)

    def value(self, hidden: Tensor) -> Tensor:
        """Values alone."""
        at = self.arch.width + self.arch.kv_heads * self.arch.head_dim
        bias = None if self.qkv_proj.bias is None else self.qkv_proj.bias[at:]
        return self.split(F.linear(self.attn_norm(hidden), self.qkv_proj.weight[at:], bias))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> Tensor:
        """Attention and output projection."""
        out: Tensor = self.o(attention(query, key, value, keys))
        return out

    def attend_weighed(self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention and output projection, and the heads' mean probabilities."""
        out, weights = attention_weighed(query, key, value, keys)
        return self.o(out), weights

    def mlp(self, hidden: Tensor) -> Tensor:
        """SwiGLU of the normalised input."""
        return self.kernels.feed(self, hidden)


def _project(block: TransformerBlock, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    arch = block.arch
    turning = arch.heads + arch.kv_heads
    heads = block.split(block.qkv_proj(block.attn_norm(hidden)))
    turned = rotate(heads[..., :turning, :], rotary)
    return turned[..., : arch.heads, :], turned[..., arch.heads :, :], heads[..., turning:, :]


def _feed(block: TransformerBlock, hidden: Tensor) -> Tensor:
    gate, up = block.gate_up(block.mlp_norm(hidden)).chunk(2, -1)
    out: Tensor = block.down(F.silu(gate) * up)
    return out


EAGER = Kernels(_project, _feed)


class Transformer(nn.Module):
    """Embedding, blocks, final norm and head; the caller runs the blocks through a cache."""

    rotary: Tensor

    def __init__(self, arch: Architecture, context: int) -> None:
        super().__init__()
        self.arch = arch
        self.kernels = EAGER
        self.embed = nn.Embedding(arch.vocab, arch.width, _weight=torch.empty(arch.vocab, arch.width))
        self.blocks = nn.ModuleList(TransformerBlock(arch) for _ in range(arch.layers))
        self.norm = Norm(arch.width, arch.eps)
        self.head = None if arch.tied else nn.Linear(arch.width, arch.vocab, bias=False)
        if self.embed.weight.is_meta:  # made later; torch calculates on "meta" by torch._dynamo, a second to import
            self.register_buffer("rotary", torch.empty(0), persistent=False)
        else:
            self.make_rotary(context, "cpu")

    def make_rotary(self, context: int, device: torch.device | str) -> None:
        """(Re)make the table of rotary embeddings; one row more than ``context`` for empty slots."""
        self.register_buffer(
            "rotary", rotary_table(context + 1, self.arch.head_dim, self.arch.theta, device), persistent=False
        )

    def use(self, kernels: Kernels) -> None:
        """Let all blocks compute with these functions: ``EAGER``, or what :func:`unmask.models.kernels.compiled` makes
        of them.
        """
        self.kernels = kernels
        for block in self.blocks:
            block.kernels = kernels  # type: ignore[assignment]

    def parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The name and shape of each tensor of a checkpoint, by the parameter whose rows it is (or is a part of)."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, parameter in self.named_parameters():
            *path, module, kind = name.split(".")
            split = self.arch.stacked.get(module, {module: len(parameter)})
            shapes = {part: (rows, *parameter.shape[1:]) for part, rows in split.items()}
            found[name] = {".".join([*path, part, kind]): shape for part, shape in shapes.items()}
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of each tensor of a checkpoint."""
        return {name: shape for parts in self.parts().values() for name, shape in parts.items()}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors that :meth:`parts` names; empties ``tensors``."""
        for name, parts in self.parts().items():
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
