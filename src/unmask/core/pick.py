"""Which of the scored positions to take, per row. Scores are ``[B, T]`` with -inf where a position is no candidate."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import ModelSpec
from .errors import RequestError
from .protocols import Prediction


def best(score: Tensor) -> Tensor:
    """``[B, T]`` the best candidate of each row (the first of equals); nothing in rows without candidates."""
    top = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.argmax(1, keepdim=True), True)
    return top & (score > -torch.inf)


def top(score: Tensor, count: int | Tensor) -> Tensor:
    """``[B, T]`` the ``count`` best candidates of each row; ``count`` is a number or ``[B]``."""
    if isinstance(count, int) and count == 1:
        return best(score)
    place = ranks(score)
    limit = count[:, None] if isinstance(count, Tensor) else count
    return (place <= limit) & (place > 0)


def ranks(score: Tensor) -> Tensor:
    """``[B, T]`` the place of each candidate in its row, 1 for the best (of equals the first); 0 for the others."""
    order = score.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(1, score.shape[1] + 1, device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place) * (score > -torch.inf)


def at_least(score: Tensor, threshold: float | Tensor) -> Tensor:
    """``[B, T]`` candidates that reach ``threshold`` (a number or ``[B]``)."""
    limit = threshold[:, None] if isinstance(threshold, Tensor) else threshold
    return (score >= limit) & (score > -torch.inf)


def above(score: Tensor, threshold: float | Tensor) -> Tensor:
    """``[B, T]`` candidates that exceed ``threshold`` (a number or ``[B]``)."""
    limit = threshold[:, None] if isinstance(threshold, Tensor) else threshold
    return (score > limit) & (score > -torch.inf)


def certainty(prediction: Prediction, measure: str) -> Tensor:
    """``[B, T]`` how certain a prediction is: its ``confidence``, ``margin``, or negative ``entropy``; -inf where there
    is none.
    """
    if measure == "confidence":
        return prediction.confidence
    value = getattr(prediction, measure).double()
    return torch.where(prediction.confidence > -torch.inf, -value if measure == "entropy" else value, -torch.inf)


class Stepped(Protocol):
    """A policy whose blocks share its steps."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def steps(self) -> int | None:
        """Of a whole response; None: one for each position."""

    @property
    def block_length(self) -> int | None:
        """Positions of a block; None: the response is one."""


def block_steps(policy: Stepped, length: Tensor, spec: ModelSpec) -> Tensor:
    """``[B]`` steps of each block of responses of ``length [B]``: its share of all, or its own length.

    Raises:
        RequestError: the policy's ``steps`` are not a multiple of a row's number of blocks, or these blocks are not
            those of a block model.
    """
    if policy.steps is not None and spec.block not in (None, policy.block_length):
        raise RequestError(
            f"{policy.name}: steps are shared by blocks of block_length = {policy.block_length} tokens, but this model "
            f"decodes blocks of {spec.block}: with steps, give block_length={spec.block}"
        )
    size = length if policy.block_length is None else torch.full_like(length, policy.block_length)
    if policy.steps is None:
        return size
    blocks = (length + size - 1) // size
    if bool((policy.steps % blocks != 0).any()):
        odd = int(blocks[(policy.steps % blocks).argmax()])
        raise RequestError(
            f"{policy.name}: steps must be a multiple of the number of blocks "
            f"(gen_length / block_length = {odd}), got {policy.steps}"
        )
    return policy.steps // blocks


def nucleus(mass: Tensor, p: float, within: bool = False) -> Tensor:
    """``[B, T]`` the fewest positions whose ``mass [B, T]`` (at least 0; 0 where no candidate) reaches the share ``p``
    of the row's sum; nothing at 0. ``within``: the most that do not exceed it, at least one.
    """
    ordered, order = mass.sort(dim=1, descending=True, stable=True)
    reached, limit = ordered.cumsum(1), p * mass.sum(1, keepdim=True)
    if within:
        taken = reached <= limit
        taken[:, 0] = True
    else:
        taken = reached - ordered < limit
    return torch.zeros_like(taken).scatter(1, order, taken & (ordered > 0))


def independent(conflict: Tensor, score: Tensor) -> Tensor:
    """``[B, K]`` candidates no two of which are in conflict: by score, each that is in none with those taken before.

    Args:
        conflict: ``[B, K, K]``, symmetric.
        score: ``[B, K]``, -inf where a position is no candidate.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    open_ = score.gather(1, order) > -torch.inf
    many = order.shape[1]
    ordered = conflict.gather(1, order[:, :, None].expand(-1, -1, many)).gather(2, order[:, None].expand(-1, many, -1))
    taken = list[Tensor]()
    for place in range(many):
        taken.append(open_[:, place])
        open_ = open_ & ~(ordered[:, place] & open_[:, place, None])
    return torch.zeros_like(open_).scatter_(1, order, torch.stack(taken, 1))


def certainty_density(known: Tensor, length: Tensor, sigma: float) -> Tensor:
    """``[B, T]`` float64, the share of known positions around each, weighted by a Gaussian of ``sigma`` positions.

    The certainty density of d2Cache (arXiv 2509.23094). Before a row all counts as known, behind it what its last
    position is, as in the authors' code. The weights are whole numbers: sums are exact in any batch.

    Args:
        known: ``[B, T]``.
        length: ``[B]`` of the rows.
    """
    reach = int(8 * sigma) + 1
    away = torch.arange(-reach, reach + 1, device=known.device, dtype=torch.float64)
    weight = (torch.exp(-0.5 * (away / sigma) ** 2) * 2.0**40).round()
    last = known.gather(1, length[:, None] - 1)
    place = torch.arange(known.shape[1], device=known.device)
    inside = torch.where(place < length[:, None], known, last)
    wide = torch.cat([torch.ones_like(last).expand(-1, reach), inside, last.expand(-1, reach)], 1)
    return F.conv1d(wide[:, None].double(), weight[None, None])[:, 0] / weight.sum()
