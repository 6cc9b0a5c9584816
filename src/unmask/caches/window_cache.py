"""Caches of sliding windows: DCD's with a delay (arXiv 2601.02076), DSB's with margins (arXiv 2602.05992)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.protocols import Ask, Geometry, Plan, Prediction
from ..core.store import Store, visible


@dataclass(frozen=True)
class WindowState:
    """Keys and values; ``start [B]`` of the window in the forward pass before (-1: none), tokens committed since the
    last refresh (``count [B]``).
    """

    store: Store
    start: Tensor
    count: Tensor


@dataclass(frozen=True)
class WindowCache(Cache):
    """Recomputes the policy's window and its margins; everything whenever ``refresh`` tokens have been committed.

    For windows that move after every forward pass, with which ``dual`` would refresh every time. The margin in front is
    counted from where the window began in the forward pass before, so that what that pass committed is computed at
    least once with its tokens; ``before=none`` leaves them out.
    """

    name = "window_cache"
    paper = "arXiv 2601.02076"
    captures = True

    refresh: int = param(16, "committed tokens after which everything is recomputed", ge=1)
    before: int | None = param(
        4, "positions in front of the last window that are recomputed; none: from this window on", ge=0, optional=True
    )
    behind: int | None = param(4, "positions behind the window that are recomputed; none: all", ge=0, optional=True)
    margin: str = param(
        "last", "where the margin in front is counted from: the last window's start (DCD), or this one's (DSB)",
        choices=("last", "this"), hidden=True,
    )  # fmt: skip
    last: bool = param(
        True,
        "of shifted models, whether the last position is recomputed too, which predicts nothing of it",
        hidden=True,
    )
    source: bool = param(
        True,
        "of shifted models, whether the position in front is recomputed, which predicts the first; false: only where "
        "nothing else is predicted, if the policy can do without",
        hidden=True,
    )

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> WindowState:
        """Empty store, never refreshed."""
        none = torch.full_like(canvas.prompt, -1)
        return WindowState(Store.empty(canvas, geometry, like), none, torch.zeros_like(none))

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: WindowState) -> tuple[Plan, WindowState]:
        """The window and its margins, what was never seen; at a refresh all."""
        keys = visible(canvas, ask, need)
        start = canvas.first(ask.window)
        start = torch.where(start < ask.window.shape[1], start, state.start.clamp(min=0))
        fresh = (state.start < 0) | (state.count >= self.refresh)
        if ask.refresh is not None:
            fresh = fresh | ask.refresh
        part = self._part(canvas, ask, start, state)
        if ask.stale is not None:
            part = part & ~ask.stale
        compute = keys & (fresh[:, None] | part | ~state.store.known)
        if not self.source and ask.optional is not None:
            optional = canvas.sources(ask.optional)
            need = need & ~(optional & (need & optional & compute).any(1, keepdim=True))
        compute = compute | need
        store = state.store.learn(canvas, compute)
        count = torch.where(fresh, 0, state.count)
        return Plan(compute, keys, compute.sum(1)), replace(state, store=store, start=start, count=count)

    def _part(self, canvas: Canvas, ask: Ask, start: Tensor, state: WindowState) -> Tensor:
        """``[B, T]`` the window with its margins and, of shifted models, the position that predicts the first."""
        low = start
        if self.before is not None:
            low = torch.maximum(state.start - self.before, canvas.prompt)
            low = torch.minimum(low if self.margin == "last" else state.start, start)
            low = low if self.margin == "last" else torch.minimum(low, start - self.before)
        part = canvas.valid & (canvas.position >= low[:, None])  # padding has no source
        if self.behind is not None:
            end = torch.where(ask.window, canvas.position + 1, 0).amax(1)
            part = part & (canvas.position < (end + self.behind)[:, None])
        if not self.source:
            return part
        return part | canvas.sources(part) if self.last else canvas.sources(part)

    def note(self, update: Update, prediction: Prediction, state: WindowState) -> WindowState:
        """Counts what was committed."""
        return replace(state, count=state.count + update.write.sum(1))
