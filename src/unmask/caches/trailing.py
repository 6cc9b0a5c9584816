"""Adaptive Parallel Decoding's window (arXiv 2506.00413): what lies far behind the frontier stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas
from ..core.config import param
from ..core.protocols import Ask, Geometry, Plan
from ..core.store import Store, visible


@dataclass(frozen=True)
class TrailingState:
    """Keys and values, and ``frontier [B]``: the row's first mask in the forward before."""

    store: Store
    frontier: Tensor


@dataclass(frozen=True)
class TrailingCache(Cache):
    """Keys and values of all but the last ``window`` positions before the frontier are kept; the rest is recomputed.

    The window is counted from the frontier of the forward before, so that what that forward committed is computed at
    least once with its tokens. For policies that go from left to right; others may commit a token behind the window
    only where they have left a mask there, which keeps the frontier back.
    """

    name = "trailing"
    paper = "arXiv 2506.00413"
    captures = True

    window: int = param(16, "positions before the frontier that are recomputed", ge=1)

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> TrailingState:
        """Empty store."""
        return TrailingState(Store.empty(canvas, geometry, like), canvas.frontier)

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: TrailingState) -> tuple[Plan, TrailingState]:
        """The window and what follows, and what was never seen."""
        keys = visible(canvas, ask, need)
        part = canvas.position > (state.frontier - self.window)[:, None]
        if ask.stale is not None:
            part = part & ~ask.stale
        if ask.refresh is not None:
            part = part | ask.refresh[:, None]
        compute = keys & (part | ~state.store.known) | need
        after = replace(state, store=state.store.learn(canvas, compute), frontier=canvas.frontier)
        return Plan(compute, keys, compute.sum(1)), after
