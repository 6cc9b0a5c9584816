"""Tokens guessed from which token followed which in a row's own text."""

from __future__ import annotations

import torch
from torch import Tensor

from .canvas import Canvas
from .nets import take
from .predict import gumbel


def guessed(canvas: Canvas, place: Tensor, hot: Tensor, seed: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens for masked positions from the left, each drawn from what follows the token before it elsewhere in the
    text, up to the first that nothing is known of; and the shares that they were drawn from.

    Args:
        canvas: the rows, in an order (``ModelSpec.ordered``).
        place: ``[B, N]`` masked positions, T where there are no more.
        hot: ``[B]`` rows that draw; the others take the most frequent token.
        seed, count: ``[B]`` of the noise.

    Returns:
        ``[B, T]`` ids plus 1, 0 where nothing is guessed, and ``[B, N, V]`` float64.
    """
    text, vocab = canvas.past, canvas.spec.vocab
    tokens = torch.where(text, canvas.tokens, -1)
    behind = torch.where(text[:, 1:] & text[:, :-1], tokens[:, 1:], 0)
    draft, share = torch.zeros_like(canvas.tokens), torch.zeros(*place.shape, vocab, device=place.device).double()
    going = torch.ones_like(hot)
    for step in range(place.shape[1]):
        here = place[:, step]
        before = take(torch.where(draft > 0, draft - 1, tokens), (here - 1).clamp(min=0)[:, None], -1)
        pair = (tokens[:, :-1] == before) & text[:, 1:] & (before >= 0)
        seen = share.new_zeros(len(here), vocab).scatter_add_(1, behind, pair.double())
        going = going & (seen.sum(1) > 0) & (here < tokens.shape[1]) & (here > 0)
        noise = torch.where(hot[:, None], gumbel(seed, here, count, vocab), 0.0)
        drawn = (seen.log() + noise).argmax(1)
        sure = torch.zeros_like(seen).scatter_(1, drawn[:, None], 1.0)
        share[:, step] = torch.where(hot[:, None], seen / seen.sum(1, keepdim=True).clamp(min=1), sure)
        draft = torch.where((canvas.position == here[:, None]) & going[:, None], drawn[:, None] + 1, draft)
    return draft, share
