"""Which of the scored positions to take, per row. Scores are ``[B, T]`` with -inf where a position is no candidate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import RequestError


def best(score: Tensor) -> Tensor:
    """``[B, T]`` the best candidate of each row (the first of equals); nothing in rows without candidates."""
    top = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.argmax(1, keepdim=True), True)
    return top & (score > -torch.inf)


def top(score: Tensor, count: int | Tensor) -> Tensor:
    """``[B, T]`` the ``count`` best candidates of each row; ``count`` is a number or ``[B]``."""
    if isinstance(count, int) and count == 1:
        return best(score)
    order = score.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(score.shape[1], device=score.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    limit = count[:, None] if isinstance(count, Tensor) else count
    return (rank < limit) & (score > -torch.inf)


def at_least(score: Tensor, threshold: float | Tensor) -> Tensor:
    """``[B, T]`` candidates that reach ``threshold`` (a number or ``[B]``)."""
    limit = threshold[:, None] if isinstance(threshold, Tensor) else threshold
    return (score >= limit) & (score > -torch.inf)


def block_steps(policy: str, steps: int, length: Tensor, size: Tensor) -> Tensor:
    """``[B]`` steps of each block, given those of the whole response and ``[B]`` response and block lengths.

    Raises:
        RequestError: not a multiple of a row's number of blocks.
    """
    blocks = (length + size - 1) // size
    if bool((steps % blocks != 0).any()):
        odd = int(blocks[(steps % blocks).argmax()])
        raise RequestError(
            f"{policy}: steps must be a multiple of the number of blocks "
            f"(gen_length / block_length = {odd}), got {steps}"
        )
    return steps // blocks


def nucleus(mass: Tensor, p: float) -> Tensor:
    """``[B, T]`` the fewest positions whose ``mass [B, T]`` (at least 0; 0 where no candidate) reaches the share ``p``
    of the row's sum; nothing at 0.
    """
    ordered, order = mass.sort(dim=1, descending=True, stable=True)
    reached = ordered.cumsum(1) - ordered  # by those before
    taken = (reached < p * mass.sum(1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(taken).scatter(1, order, taken)


def certainty_density(known: Tensor, valid: Tensor, sigma: float) -> Tensor:
    """``[B, T]`` float64, the share of known positions around each, weighted by a Gaussian of ``sigma`` positions.

    The certainty density of d2Cache (arXiv 2509.23094). The weights are whole numbers: sums are exact in any batch.

    Args:
        known, valid: ``[B, T]``; positions that are not valid have no weight.
    """
    reach = min(known.shape[1] - 1, int(8 * sigma) + 1)
    away = torch.arange(-reach, reach + 1, device=known.device, dtype=torch.float64)
    weight = (torch.exp(-0.5 * (away / sigma) ** 2) * 2.0**40).round()
    both = torch.stack([known & valid, valid], 1).double().flatten(0, 1)[:, None]
    some, all_ = F.conv1d(both, weight[None, None], padding=reach).view(-1, 2, known.shape[1]).unbind(1)
    return some / all_.clamp(min=1)
