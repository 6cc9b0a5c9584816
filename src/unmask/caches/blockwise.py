"""The exact cache of block models: what lies in finished blocks is computed once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas
from ..core.protocols import Ask, Plan
from ..core.store import Store, visible


@dataclass(frozen=True)
class BlockwiseCache(Cache):
    """Computes the current block of a block model in every forward pass, and everything before it once.

    A position of a block model sees its own block and those before it, so keys and values of a finished block are final
    once they were computed from its final text. That happens together with the first forward pass of the block behind
    it, or, with a shifted model, in the forward pass that predicts that block's first position. The answers are those
    of ``none``.
    """

    name = "blockwise"
    paper = "arXiv 2503.09573"
    attention = ("block", "canvas", "order")
    captures = True

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: Store) -> tuple[Plan, Store]:
        """What is visible, less what is final."""
        keys = visible(canvas, ask, need)
        part = keys & ~state.kept(canvas)
        if ask.stale is not None:
            part = part & ~(ask.stale & state.known)
        if ask.refresh is not None:
            part = part | keys & ask.refresh[:, None]
        compute = part | need
        return Plan(compute, keys, compute.sum(1)), state.learn(canvas, compute)
