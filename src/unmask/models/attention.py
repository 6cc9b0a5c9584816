"""Attention over gathered queries and stored keys; the only place that knows how a kernel wants them."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.protocols import Keys, Ranked

_WEIGHTS_AT_ONCE = 1 << 21  # attention probabilities at any time: more fall out of a core's cache
_QUERIES_AT_ONCE = 512  # but no fewer (of one head), or the products cost more than the cache saves
# Probabilities of a row, all heads, from which torch's own kernel takes longer in 16 bits. Of a row, not of the batch:
# so a row is calculated by the same kernel alone and in a batch.
_PARTS_FROM = 1 << 14
_MASK_AT_ONCE = 1 << 22  # elements of [queries, S] of a mask by rank at any time


def attention(query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> Tensor:
    """Every query attends to the keys that count for it.

    Args:
        query: ``[B, Q, H, D]``.
        key, value: ``[B, S, H_kv, D]``; H is a multiple of H_kv (grouped-query attention).
        keys: ``[B, S]`` keys that count, or ``[B, Q, S]`` for each query, or by rank; None: all.

    Returns:
        ``[B, Q, H * D]``.
    """
    if isinstance(keys, Ranked):
        return _ranked(query, key, value, keys)
    _, slots, heads, _ = query.shape
    if query.device.type == "cpu" and query.element_size() == 2 and slots * heads * key.shape[1] >= _PARTS_FROM:
        return _by_parts(query, key, value, keys)
    if keys is not None and query.is_cuda and query.shape[2] != key.shape[2]:
        return _grouped(query, key, value, keys)
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    mask = None if keys is None else keys[:, None, None, :] if keys.dim() == 2 else keys[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(2)


def _ranked(query: Tensor, key: Tensor, value: Tensor, keys: Ranked) -> Tensor:
    """:func:`attention` for some queries at a time, so that no mask of all queries and all keys is made."""
    many, out = max(_QUERIES_AT_ONCE // 4, _MASK_AT_ONCE // key.shape[1]), list[Tensor]()
    for at in range(0, query.shape[1], many):
        piece = slice(at, at + many)
        extent = key.shape[1]
        if not query.is_cuda:  # there it would mean to wait
            extent = int((keys.key <= keys.query[:, piece].amax(1, keepdim=True)).any(0).nonzero().amax()) + 1
        seen = Ranked(keys.query, keys.key[:, :extent]).mask(piece)
        out.append(attention(query[:, piece], key[:, :extent], value[:, :extent], seen))
    return out[0] if len(out) == 1 else torch.cat(out, 1)


def _grouped(query: Tensor, key: Tensor, value: Tensor, keys: Tensor) -> Tensor:
    """:func:`attention` with the query heads that share a key head in a row, as further queries of that head.

    On CUDA the kernels that take a mask know no grouped heads: torch would calculate the whole matrix of scores.
    """
    batch, slots, heads, size = query.shape
    groups = key.shape[2]
    q = query.view(batch, slots, groups, -1, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
    each = keys[:, None, None] if keys.dim() == 2 else keys[:, None].repeat(1, 1, heads // groups, 1)
    out = F.scaled_dot_product_attention(q, key.transpose(1, 2), value.transpose(1, 2), attn_mask=each)
    return out.view(batch, groups, -1, slots, size).permute(0, 3, 1, 2, 4).flatten(2)


def attention_weighed(
    query: Tensor, key: Tensor, value: Tensor, keys: Keys, at_once: int = _WEIGHTS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """As :func:`attention`, and what each query gave to each key.

    Args:
        query, key, value, keys: see there.
        at_once: elements of ``[rows, heads, queries, S]`` at any time.

    Returns:
        ``[B, Q, H * D]``, and the probabilities averaged over the heads, ``[B, Q, S]``, float32 at least.
    """
    weights = wide(query.new_empty(0)).new_zeros(*query.shape[:2], key.shape[1])
    seen = keys.mask() if isinstance(keys, Ranked) else keys
    return _by_parts(query, key, value, seen, weights, at_once, 1), weights


def _by_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor | None,
    weights: Tensor | None = None,
    at_once: int = _WEIGHTS_AT_ONCE,
    least: int = _QUERIES_AT_ONCE,
) -> Tensor:
    """:func:`attention` by plain products, for some rows, of one row some heads, of these some queries, at a time.

    ``weights [B, Q, S]``, zeros, receives the heads' mean probabilities; ``least``: queries at a time, whatever
    ``at_once`` is.
    """
    batch, slots, heads, size = query.shape
    stored, groups = key.shape[1:3]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    many = max(1, at_once // (heads // groups * slots * stored))  # key heads
    rows, some_heads = max(1, many // groups), min(many, groups)
    count = max(least, at_once // (rows * some_heads * (heads // groups) * stored))
    scaled, told = (x.view(batch, slots, groups, -1, size) for x in (query * size**-0.5, out))
    if keys is not None:  # adding is a quarter of masked_fill's time; not -inf, for an empty slot may see no key at all
        bias = torch.zeros_like(keys, dtype=query.dtype).masked_fill_(~keys, torch.finfo(query.dtype).min / 2)
        bias = bias[:, None] if keys.dim() == 2 else bias
    for row, head in product(range(0, batch, rows), range(0, groups, some_heads)):
        some, these = slice(row, row + rows), slice(head, head + some_heads)
        k, v = (x[some, :, these].transpose(1, 2).flatten(0, 1).contiguous() for x in (key, value))
        for at in range(0, slots, count):
            piece = slice(at, at + count)
            q = scaled[some, piece, these].permute(0, 2, 3, 1, 4)  # [rows, H_kv, H / H_kv, queries, D]
            score = torch.bmm(q.reshape(len(k), -1, size), k.mT).view(*q.shape[:4], stored)
            if keys is not None:
                score += bias[some, None, None] if keys.dim() == 2 else bias[some, None, None, piece]
            share = score.softmax(-1) if weights is None else wide(score).softmax(-1)
            if weights is not None:
                weights[some, piece] += share.sum((1, 2)) / heads
            got = torch.bmm(share.to(v.dtype).view(len(v), -1, stored), v).view(q.shape)
            told[some, piece, these] = got.permute(0, 3, 1, 2, 4)
    return out.flatten(2)


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotary embeddings, in float32 at least, of ``[B, Q, H, D]``, given ``[B or 1, Q, 2, R]`` rows of the table; of
    each head the first R dimensions.
    """
    size = rotary.shape[-1]
    if size < x.shape[-1]:
        return torch.cat([rotate(x[..., :size], rotary), x[..., size:]], -1)
    x_wide, half = wide(x), size // 2
    cosine, sine = rotary[:, :, 0, None], rotary[:, :, 1, None]
    turned = x_wide * cosine
    turned[..., :half].addcmul_(x_wide[..., half:], sine[..., :half])
    turned[..., half:].addcmul_(x_wide[..., :half], sine[..., half:])
    return turned.to(x.dtype)
