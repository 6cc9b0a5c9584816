"""Fast-dLLM's block caches (arXiv 2505.22618, section 3.2): prefix and dual."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas
from ..core.protocols import Ask, Geometry, Plan
from ..core.store import Store, visible


@dataclass(frozen=True)
class BlockState:
    """Keys and values, and ``start [B]``: where the window stood at the last refresh (-1: never)."""

    store: Store
    start: Tensor


@dataclass(frozen=True)
class DualCache(Cache):
    """Recomputes everything when the policy's window moves to a new start; until then only the window.

    Keys and values before and behind the window stay as they were at the refresh. Per row. Of a block model that
    concerns the current block; finished ones are computed once (Fast-dLLM v2's sub-block cache, arXiv 2509.26328): with
    a shifted model also what precedes the window counts as moved until the window's first position is filled.
    """

    name = "dual"
    paper = "arXiv 2505.22618"
    attention = ("full", "block")
    suffix = False
    captures = True

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> BlockState:
        """Empty store, never refreshed."""
        return BlockState(Store.empty(canvas, geometry, like), torch.full_like(canvas.prompt, -1))

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: BlockState) -> tuple[Plan, BlockState]:
        """All visible positions at a refresh; else the window (prefix: and what follows), and what was never seen."""
        keys = visible(canvas, ask, need)
        window = ask.window if ask.cell is None else ask.cell
        start = canvas.first(window)
        start = torch.where(start < window.shape[1], start, state.start)
        fresh = start != state.start
        if canvas.spec.shift and canvas.spec.block is not None:
            fresh = fresh | (canvas.frontier == start)
        if ask.refresh is not None:
            fresh = fresh | ask.refresh
        part = canvas.position >= start[:, None] if self.suffix else window
        if ask.stale is not None:
            part = part & ~ask.stale
        due = fresh[:, None] & ~state.store.kept(canvas) | part | ~state.store.known
        compute = keys & due | need
        store = state.store.learn(canvas, compute)
        return Plan(compute, keys, compute.sum(1)), replace(state, store=store, start=start)


@dataclass(frozen=True)
class PrefixCache(DualCache):
    """As ``dual``, but the positions behind the window are recomputed with it; only what precedes it is kept."""

    name = "prefix"
    suffix = True
