"""rho-EOS (arXiv 2601.22527): responses whose length follows what the model predicts of their end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.lengths import Resizing, end_share
from ..core.protocols import Ask, Prediction, Sampling
from ..core.spans import Spanned

_SEGMENT, _FASTEST = 0.1, 8  # of the code: the gap at which the pace rises, and the fastest pace


@dataclass(frozen=True)
class FlexibleState:
    """The policy's state; ``[B]``: the ``start`` of the current block, forward passes so far (``count``), whether the
    length stays as it is from now on (``fixed``).
    """

    inner: Any
    start: Tensor
    count: Tensor
    fixed: Tensor


@dataclass(frozen=True)
class Flexible(Resizing):
    """Decodes by ``policy``; the response becomes longer or shorter at its end, as the end of text fills it.

    ``gen_length`` is the length to begin with, ``max_length`` the bound. After each forward pass the probabilities of
    the last ``look`` positions whose predicted token is an end of text are added up, from the end of the response on,
    and divided by ``look``. Below ``low`` masked positions are appended, above ``high`` those that predict an end of
    text are cut off: ``step`` at a time, or several times as many the further away the share is. The length stays once
    it has reached its bound.

    A forward pass that does not predict the whole response changes nothing: with a cache that recomputes one block
    (`dual`) lengths change where a block begins.
    """

    name = "flexible"
    paper = "arXiv 2601.22527"

    low: float = param(0.4, "share of the end of text below which the response becomes longer; 0: never", ge=0, le=1)
    high: float = param(0.6, "the same above which it becomes shorter; 1: never", ge=0, le=1)
    step: int = param(8, "positions by which it becomes longer or shorter", ge=1)
    look: int = param(32, "positions that predict an end of text which are looked at", ge=1)
    growth: str = param(
        "exp",
        "steps at once for each 0.1 that the share is away: 1, 2, 4, 8 (exp), 1, 2, 3 (linear), always 1 (const)",
        choices=("exp", "linear", "const"),
    )
    until: int = param(64, "forward passes in which the length may change", ge=0)
    cut: str = param(
        "ends", "what is cut off: masked positions that predict an end of text, or any (the authors' code)",
        choices=("ends", "any"), hidden=True,
    )  # fmt: skip

    @property
    def remasks(self) -> bool:
        return self.policy.remasks or self.cut == "any"

    @property
    def holds(self) -> bool:
        return self.policy.holds or self.cut == "any"

    def init(self, canvas: Canvas, sampling: Sampling) -> FlexibleState:
        zero = torch.zeros_like(canvas.prompt)
        return FlexibleState(self.policy.init(canvas, sampling), canvas.prompt, zero, zero > 0)

    def ask(self, canvas: Canvas, state: FlexibleState) -> Ask:
        ask = self.policy.ask(self._view(canvas, state), state.inner)
        return replace(ask, ends=canvas.response if ask.visible is None else canvas.response & ask.visible)

    def decide(self, canvas: Canvas, prediction: Prediction, state: FlexibleState) -> tuple[Update, FlexibleState]:
        view = self._view(canvas, state)
        visible = self.policy.ask(view, state.inner).visible
        update, inner = self.policy.decide(view, prediction, state.inner)
        fixed = state.fixed | (canvas.length >= canvas.most) | (state.count >= self.until)
        share = end_share(canvas, prediction, visible, self.look)
        grow = torch.where(fixed, 0, self._change(share))
        if self.cut == "ends":
            last = canvas.response & (canvas.filled | update.write | ~(prediction.end > 0))  # type: ignore[operator]
            grow = torch.maximum(grow, torch.where(last, canvas.position + 1, 0).amax(1) - canvas.length)
        update, start = self._resized(canvas, update, grow, state.start)
        return update, FlexibleState(inner, start, state.count + 1, fixed)

    def notes(self, canvas: Canvas, before: FlexibleState, after: FlexibleState) -> Mapping[str, Tensor]:
        return self.policy.notes(canvas, before.inner, after.inner)

    def _view(self, canvas: Canvas, state: FlexibleState) -> Canvas:
        """The canvas with the current block, which need not begin at a multiple of its length; of policies whose blocks
        must, the canvas itself.
        """
        size = getattr(self.policy, "block_length", None)
        if not self.policy.spans or size is None:
            return canvas
        return Spanned.of(canvas, state.start, torch.minimum(state.start + size, canvas.length))

    def _change(self, share: Tensor) -> Tensor:
        """``[B]`` positions to append, or to cut off (negative), given the share of the end of text; NaN: unknown."""
        less, more = share < self.low, share > self.high
        gap = torch.where(less, self.low - share, share - self.high)
        segment = torch.ceil(gap / _SEGMENT).nan_to_num(1.0).clamp(min=1)
        pace = {"exp": 2 ** (segment - 1), "linear": segment, "const": torch.ones_like(segment)}[self.growth]
        return (less.long() - more.long()) * self.step * pace.clamp(max=_FASTEST).long()

    def _resized(self, canvas: Canvas, update: Update, grow: Tensor, start: Tensor) -> tuple[Update, Tensor]:
        """The update with the change of length that is possible, and the next block's start."""
        after = canvas.apply(update)
        length = canvas.resized(grow)
        update = replace(update, grow=length - canvas.length)
        if self.cut == "any":
            update = self._cut(canvas, update, length)
        size = getattr(self.policy, "block_length", None) or 1
        masks = (after.tokens == canvas.spec.mask) & after.valid
        first = torch.where(masks.any(1), canvas.first(masks), canvas.length)
        whole = (first - start).clamp(min=0) // size * size
        start = torch.minimum(torch.where(masks.any(1), start + whole, canvas.length), length)
        if self.cut == "any":  # tokens are left of a block whose masked positions are gone: it is looked at once more
            now = canvas.apply(update)
            update = replace(update, hold=now.done & (start < length) & ~(now.eos_stop & (now.eos_at < length)))
        return update, start

    @staticmethod
    def _cut(canvas: Canvas, update: Update, length: Tensor) -> Update:
        """The update with committed tokens behind the new ``length [B]`` re-masked, for they are gone."""
        gone = canvas.position >= length[:, None]
        remask = canvas.filled & gone
        remask = remask if update.remask is None else remask | update.remask
        return replace(update, write=update.write & ~gone, remask=remask)
