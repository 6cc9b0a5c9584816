"""Probes: further network rows that predict a position as if it were masked (WINO, arXiv 2507.18578, figure 2b)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas
from ..core.protocols import Ask
from ..core.rows import Rows


@dataclass(frozen=True)
class Probes:
    """Probes stand in the padding at the end of the canvas, in the order of what they probe.

    A probe is a mask in its position's place and sees what the position sees, less the position itself, and the other
    probes. With a shifted model it is the token before in that token's place, and sees no other probe: its output is
    what predicts the position. In an order it sees no other probe either, and is what predicts the position.

    Attributes:
        held: ``[B, T]`` columns that hold probes.
        target: ``[B, T]`` the position that each column probes; meaningful where held.
        place: ``[B, T]`` the position each column stands for.
        hides: ``[B, T]`` the position each column does not see; -1: none.
        shift: of the model.
        ordered: of the canvas.
    """

    held: Tensor
    target: Tensor
    place: Tensor
    hides: Tensor
    shift: bool
    ordered: bool = False

    @staticmethod
    def wanted(canvas: Canvas, ask: Ask, want: Tensor) -> Probes | None:
        """Those of an ask; in an order one for each position ``want [B, T]`` that is to be predicted."""
        probe = want if canvas.spec.ordered else ask.probe
        return None if probe is None else Probes.of(canvas, probe)

    @staticmethod
    def of(canvas: Canvas, probe: Tensor) -> Probes:
        """Give each position of ``probe [B, T]`` a column."""
        rows, total = probe.shape
        first = total - 1 - probe.sum(1, keepdim=True)
        column = torch.where(probe, first + probe.cumsum(1), total)  # the others' lies behind the canvas
        position = canvas.position.expand(rows, total)
        target = position.new_zeros(rows, total + 1).scatter_(1, column, position)[:, :total]
        held = probe.new_zeros(rows, total + 1).scatter_(1, column, True)[:, :total]
        place = torch.where(held, target - int(canvas.spec.shift), position)
        return Probes(held, target, place, torch.where(held, target, -1), canvas.spec.shift, canvas.spec.ordered)

    def needed(self, need: Tensor) -> Tensor:
        """``[B, T]`` what must be computed beside ``need``; in an order the probes alone predict."""
        return self.held if self.ordered else need | self.held

    def rating(self, canvas: Canvas) -> Tensor:
        """``[B, T]`` columns whose position holds a token, which they rate."""
        return self.held & ~canvas.masked.gather(1, self.target)

    def filled(self, tokens: Tensor, mask: int) -> Tensor:
        """The tokens with those that the probes begin with."""
        given = tokens.gather(1, (self.target - 1).clamp(min=0)) if self.shift else mask
        return torch.where(self.held, given, tokens)

    def aim(self, rows: Rows, keys: Tensor, rank: Tensor | None = None) -> tuple[Rows, Tensor]:
        """Rows whose probes see what they shall, given the others' ``keys [B, T]`` and ranks ``[B or 1, T]``; and where
        all stand, ``[B, Q]``.
        """
        at = rows.position.clamp(max=rows.total - 1)
        mine = rows.of(self.held).gather(1, at)
        columns = torch.arange(rows.total, device=at.device)
        alone = self.shift or self.ordered
        peers = columns == at[:, :, None] if alone else rows.of(self.held)[:, None]
        seen = rows.of(keys)[:, None] | peers & mine[:, :, None]
        seen = seen & (columns != rows.of(self.hides).gather(1, at)[:, :, None])
        place = rows.of(self.place).gather(1, at)
        if rank is not None:
            own = rows.of(rank.expand(len(keys), -1))
            seen = seen & ((own[:, None] <= own.gather(1, place)[:, :, None]) | rows.of(self.held)[:, None])
        return replace(rows, keys=seen, extent=rows.total), place
