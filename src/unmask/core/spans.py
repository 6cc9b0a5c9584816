"""A canvas whose current block is given, for policies that choose blocks for another policy."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .canvas import Canvas


@dataclass(frozen=True)
class Spanned(Canvas):
    """The same rows; the current block of any size is ``[low, high)``, ``[B]`` each. See ``Policy.spans``."""

    low: Tensor
    high: Tensor

    @staticmethod
    def of(canvas: Canvas, low: Tensor, high: Tensor) -> Spanned:
        """A view of a canvas; of a block model the block ends with the model's own at the latest."""
        made = Spanned(**{f.name: getattr(canvas, f.name) for f in fields(canvas)}, low=low, high=high)
        made.__dict__.update(canvas.__dict__)  # what has been derived of the canvas does not depend on blocks
        return made

    def _grid(self, size: int | None) -> tuple[Tensor, Tensor | int | None]:
        """The given block, where blocks are counted at all."""
        if size is None:
            return super()._grid(None)
        if self.spec.block is None:
            return self.low, self.high - self.low
        end = torch.minimum(self.high, self.base + self.spec.block)
        return self.low, torch.where(self.opening, 1, end - self.low)
