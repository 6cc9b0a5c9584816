"""Canvases of a row that differ from it in positions which are filled ahead, for policies with several branches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .canvas import Canvas
from .pick import ranks
from .protocols import Forks, Prediction
from .state import PER_POSITION, repeated


@dataclass(frozen=True)
class Drafts:
    """Tokens that were predicted for masked positions of a row and are not committed yet, ``[B, T]`` each.

    Attributes:
        rank: 1, 2, ... from the surest draft on; 0 where there is none.
        token: ids.
        sure: their probabilities.
    """

    rank: Tensor = field(metadata=PER_POSITION)
    token: Tensor = field(metadata=PER_POSITION)
    sure: Tensor = field(metadata=PER_POSITION)

    @staticmethod
    def none(canvas: Canvas) -> Drafts:
        """Before the first forward pass."""
        nothing = torch.zeros_like(canvas.tokens)
        return Drafts(nothing, nothing, nothing.double())

    @staticmethod
    def best(score: Tensor, count: int | Tensor, token: Tensor, sure: Tensor) -> Drafts:
        """The ``count`` (a number or ``[B]``) best of ``score [B, T]``, which is -inf where there is nothing."""
        place = ranks(score)
        most = count[:, None] if isinstance(count, Tensor) else count
        return Drafts(torch.where(place <= most, place, 0), token, sure)

    def canvases(self, canvas: Canvas, count: int, nested: bool) -> Forks:
        """``count`` canvases of each row: its own, and those with the first, second, ... draft; ``nested``: and all
        better ones. A canvas without a draft of its own is idle, and one in which nothing is left to do.
        """
        number = torch.arange(count, device=canvas.tokens.device)[:, None]
        rank = self.rank[:, None]
        filled = (rank > 0) & ((rank <= number) if nested else (rank == number))
        tokens = torch.where(filled, self.token[:, None], canvas.tokens[:, None]).flatten(0, 1)
        sure = torch.where(filled, self.sure[:, None], 0.0).flatten(0, 1)
        made = replace(repeated(canvas, count), tokens=tokens)
        own = (rank == number).any(2) | (number[:, 0] == 0)
        return Forks(made, count, ~own.flatten() | made.done, sure)


_PARTS = ("token", "confidence", "entropy", "margin")


@dataclass(frozen=True)
class Answers:
    """The last prediction that each position had, ``[B, T]`` each; see :class:`~unmask.core.protocols.Prediction`."""

    token: Tensor = field(metadata=PER_POSITION)
    confidence: Tensor = field(metadata=PER_POSITION)
    entropy: Tensor = field(metadata=PER_POSITION)
    margin: Tensor = field(metadata=PER_POSITION)

    @staticmethod
    def none(canvas: Canvas) -> Answers:
        """Before the first forward pass."""
        nothing = torch.zeros_like(canvas.tokens)
        return Answers(nothing, nothing - torch.inf, nothing.double(), nothing.double())

    def fill(self, prediction: Prediction, where: Tensor) -> Prediction:
        """A prediction with these in the places ``where [B, T]`` that it leaves unanswered."""
        lost = where & (prediction.confidence == -torch.inf)
        found: dict[str, Any] = {
            name: torch.where(lost, getattr(self, name), value)
            for name in _PARTS
            if (value := getattr(prediction, name)) is not None
        }
        return replace(prediction, **found)

    def after(self, prediction: Prediction) -> Answers:
        """Those after one more prediction."""
        new = prediction.confidence > -torch.inf
        found = {
            name: torch.where(new, value, getattr(self, name)).to(getattr(self, name).dtype)
            for name in _PARTS
            if (value := getattr(prediction, name)) is not None
        }
        return replace(self, **found)
