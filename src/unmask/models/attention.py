"""Attention over gathered queries and stored keys; the only place that knows how a kernel wants them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> Tensor:
    """Bidirectional attention.

    Args:
        query: ``[B, Q, H, D]``.
        key, value: ``[B, S, H_kv, D]``; H is a multiple of H_kv (grouped-query attention).
        keys: ``[B, S]`` keys that count, or ``[B, Q, S]`` for each query; None: all.

    Returns:
        ``[B, Q, H * D]``.
    """
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    mask = None if keys is None else keys[:, None, None, :] if keys.dim() == 2 else keys[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(2)


def rotary_table(positions: int, head_dim: int, theta: float, device: torch.device | str = "cpu") -> Tensor:
    """``[positions, 2, D]`` float32 cosines and (signed) sines of rotary embeddings in the half-split layout."""
    inverse = theta ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle = torch.arange(positions, device=device, dtype=torch.float32)[:, None] * inverse
    sine = angle.sin()
    return torch.stack([torch.cat([angle.cos(), angle.cos()], -1), torch.cat([-sine, sine], -1)], 1)


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotary embeddings, in float32 at least, of ``[B, Q, H, D]``, given ``[B or 1, Q, 2, D]`` rows of the table."""
    x_wide = wide(x)
    cosine, sine = rotary[:, :, 0, None], rotary[:, :, 1, None]
    half = x.shape[-1] // 2
    turned = torch.addcmul(x_wide * cosine, x_wide.roll(half, -1), sine)
    return turned.to(x.dtype)
