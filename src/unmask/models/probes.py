"""Probes: further network rows that predict a position as if it were masked (WINO, arXiv 2507.18578, figure 2b)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas
from ..core.rows import Rows


@dataclass(frozen=True)
class Probes:
    """Probes stand in the padding at the end of the canvas, the first in the last column.

    A probe is a mask in its position's place and sees what the position sees, less the position itself, and the other
    probes. With a shifted model it is the token before in that token's place, and sees no other probe: its output is
    what predicts the position.

    Attributes:
        row, position, column: ``[M]`` row, position probed, column of the probe.
        held: ``[B, T]`` columns that hold probes.
        place: ``[B, T]`` the position each column stands for.
        hides: ``[B, T]`` the position each column does not see; -1: none.
        shift: of the model.
    """

    row: Tensor
    position: Tensor
    column: Tensor
    held: Tensor
    place: Tensor
    hides: Tensor
    shift: bool

    @staticmethod
    def of(canvas: Canvas, probe: Tensor) -> Probes:
        """Give each position of ``probe [B, T]`` a column."""
        row, position = probe.nonzero(as_tuple=True)
        column = probe.shape[1] - probe.cumsum(1)[row, position]
        source = position - 1 if canvas.spec.shift else position
        held = torch.zeros_like(probe).index_put((row, column), torch.ones_like(row, dtype=torch.bool))
        place = canvas.position.expand(probe.shape).index_put((row, column), source)
        hides = torch.full_like(canvas.tokens, -1).index_put((row, column), position)
        return Probes(row, position, column, held, place, hides, canvas.spec.shift)

    def select(self, positions: Tensor) -> Probes:
        """Those that probe some ``positions [B, T]``."""
        keep = positions[self.row, self.position]
        return replace(self, row=self.row[keep], position=self.position[keep], column=self.column[keep])

    def filled(self, tokens: Tensor, mask: int) -> Tensor:
        """The tokens with those that the probes begin with."""
        given = tokens[self.row, self.position - 1] if self.shift else torch.full_like(self.row, mask)
        return tokens.index_put((self.row, self.column), given)

    def aim(self, rows: Rows, keys: Tensor) -> tuple[Rows, Tensor]:
        """Rows whose probes see what they shall, given the others' ``keys [B, T]``; and where all stand, ``[B, Q]``."""
        at = rows.position.clamp(max=rows.total - 1)
        mine = rows.of(self.held).gather(1, at)
        columns = torch.arange(rows.total, device=at.device)
        peers = columns == at[:, :, None] if self.shift else rows.of(self.held)[:, None]
        seen = rows.of(keys)[:, None] | peers & mine[:, :, None]
        seen = seen & (columns != rows.of(self.hides).gather(1, at)[:, :, None])
        return replace(rows, keys=seen, extent=rows.total), rows.of(self.place).gather(1, at)
