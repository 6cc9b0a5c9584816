"""One bidirectional transformer for every family: its blocks offer three primitives and know nothing of caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.rows import Rows
from .attention import attention, rotary_table, rotate


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
        d, kv = arch.width, arch.kv_heads * arch.head_dim
        self.head_dim = arch.head_dim
        self.attn_norm = Norm(d, arch.eps)
        self.q = nn.Linear(d, d, bias=arch.bias)
        self.k = nn.Linear(d, kv, bias=arch.bias)
        self.v = nn.Linear(d, kv, bias=arch.bias)
        self.o = nn.Linear(d, d, bias=False)
        self.mlp_norm = Norm(d, arch.eps)
        self.gate = nn.Linear(d, arch.ffn, bias=False)
        self.up = nn.Linear(d, arch.ffn, bias=False)
        self.down = nn.Linear(arch.ffn, d, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], x.shape[-1] // self.head_dim, self.head_dim)

    def qkv(self, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of ``hidden [B, Q, C]``."""
        x = self.attn_norm(hidden)
        q, k = rotate(self._heads(self.q(x)), rotary), rotate(self._heads(self.k(x)), rotary)
        return q, k, self._heads(self.v(x))

    def value(self, hidden: Tensor) -> Tensor:
        """Values alone."""
        return self._heads(self.v(self.attn_norm(hidden)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> Tensor:
        """Attention and output projection."""
        out: Tensor = self.o(attention(query, key, value, keys))
        return out

    def mlp(self, hidden: Tensor) -> Tensor:
        """SwiGLU of the normalised input."""
        x = self.mlp_norm(hidden)
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Transformer(nn.Module):
    """Embedding, blocks, final norm and head; the caller runs the blocks through a cache."""

    rotary: Tensor

    def __init__(self, arch: Architecture, context: int) -> None:
        super().__init__()
        self.arch = arch
        self.embed = nn.Embedding(arch.vocab, arch.width)
        self.blocks = nn.ModuleList(TransformerBlock(arch) for _ in range(arch.layers))
        self.norm = Norm(arch.width, arch.eps)
        self.head = None if arch.tied else nn.Linear(arch.width, arch.vocab, bias=False)
        self.make_rotary(context, "meta" if self.embed.weight.is_meta else "cpu")

    def make_rotary(self, context: int, device: torch.device | str) -> None:
        """(Re)make the table of rotary embeddings; one row more than ``context`` for empty slots."""
        self.register_buffer(
            "rotary", rotary_table(context + 1, self.arch.head_dim, self.arch.theta, device), persistent=False
        )

    def rotate_rows(self, rows: Rows) -> Tensor:
        """The rotary rows of the positions to compute, ``[B or 1, Q, 2, D]``."""
        if rows.whole:
            return self.rotary[None, : rows.total]
        return self.rotary[rows.position]

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
