"""Attention over gathered queries and stored keys; the only place that knows how a kernel wants them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WEIGHTS_AT_ONCE = 1 << 22  # elements of attention probabilities at any time: 16 MiB in float32


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


def attention_weighed(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None, at_once: int = _WEIGHTS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """As :func:`attention`, and what each query gave to each key.

    Args:
        query, key, value, keys: see there.
        at_once: elements of ``[B, H, queries, S]`` at any time.

    Returns:
        ``[B, Q, H * D]``, and the probabilities averaged over the heads, ``[B, Q, S]``, float32 at least.
    """
    batch, slots, heads, size = query.shape
    k, v = key.permute(0, 2, 3, 1), value.transpose(1, 2)
    q = (query / size**0.5).reshape(batch, slots, k.shape[1], -1, size).permute(0, 2, 3, 1, 4)
    hidden = None if keys is None else ~keys[:, None] if keys.dim() == 2 else ~keys
    count = max(1, at_once // (batch * heads * k.shape[3]))
    out, weights = [], []
    for at in range(0, slots, count):
        some = q[:, :, :, at : at + count]  # [B, H_kv, H / H_kv, queries, D]
        score = wide(some.flatten(2, 3) @ k).view(*some.shape[:4], -1)
        if hidden is not None:
            mask = hidden if hidden.shape[1] == 1 else hidden[:, at : at + count]
            score.masked_fill_(mask[:, None, None], -torch.inf)
        share = score.softmax(-1)
        weights.append(share.mean((1, 2)))
        out.append((share.to(v.dtype).flatten(2, 3) @ v).view(some.shape))
    return torch.cat(out, 3).permute(0, 3, 1, 2, 4).flatten(2), torch.cat(weights, 1)


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
