"""DAEDAL (arXiv 2508.00819): responses that grow before decoding begins, and where the model is unsure."""

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
from ..core.state import blank, mixed


@dataclass(frozen=True)
class DaedalState:
    """The policy's state; ``[B]``: whether decoding by it has ``begun``, and whether the last pass ``moved`` tokens."""

    inner: Any
    begun: Tensor
    moved: Tensor


@dataclass(frozen=True)
class Daedal(Resizing):
    """Decodes by ``policy``; the response grows until its end is in sight, then where the model is unsure.

    ``gen_length`` is the length to begin with, ``max_length`` the bound. The share of the end of text is measured as
    by `flexible`. First, forward passes that commit nothing append ``step`` masked positions each, until the share is
    ``tau_start``; then ``look`` / 2 ends of text follow behind the response, and the policy decodes. While the share is
    below ``tau_end``, the least confident masked position of its window that it did not commit becomes ``step`` of
    them, if its confidence is below ``tau_low``; what stands behind moves, and counts as committed anew.

    With a cache everything is recomputed in the first stage, and after a forward pass that has put in positions; one
    that does not predict the whole response puts in none.
    """

    name = "daedal"
    paper = "arXiv 2508.00819"
    remasks = True

    tau_start: float = param(0.5, "share of the end of text from which decoding begins", ge=0, le=1)
    tau_end: float = param(0.9, "share of the end of text from which no position is put in", ge=0, le=1)
    tau_low: float = param(0.1, "confidence below which a masked position becomes several", ge=0, le=1)
    step: int = param(8, "positions appended, or that a masked position becomes", ge=2)
    look: int = param(32, "positions that predict an end of text which are looked at", ge=1)

    def init(self, canvas: Canvas, sampling: Sampling) -> DaedalState:
        begun = canvas.length >= canvas.most
        return DaedalState(self.policy.init(canvas, sampling), begun, torch.zeros_like(begun))

    def ask(self, canvas: Canvas, state: DaedalState) -> Ask:
        ask = self.policy.ask(canvas, state.inner)
        refresh = ~state.begun | state.moved
        return replace(
            ask,
            ends=canvas.response if ask.visible is None else canvas.response & ask.visible,
            refresh=refresh if ask.refresh is None else refresh | ask.refresh,
        )

    def decide(self, canvas: Canvas, prediction: Prediction, state: DaedalState) -> tuple[Update, DaedalState]:
        visible = self.policy.ask(canvas, state.inner).visible
        update, after = self.policy.decide(canvas, prediction, state.inner)
        share, room = end_share(canvas, prediction, visible, self.look), canvas.most - canvas.length
        grows = ~state.begun & (share < self.tau_start) & (room > 0)
        begins = ~state.begun & ~grows
        sure = torch.where(canvas.masked & ~update.write, prediction.confidence, -torch.inf)
        unsure = torch.where((sure > -torch.inf) & (sure < self.tau_low), sure, torch.inf)
        least, at = unsure.min(1)
        moved = state.begun & (share < self.tau_end) & (room > 0) & (least < torch.inf)
        tokens = torch.where(state.begun[:, None], canvas.apply(update).tokens, canvas.tokens)
        tokens = torch.where(moved[:, None], self._inserted(canvas, tokens, at), tokens)
        more = torch.where(grows, self.step, torch.where(begins, self.look // 2, torch.where(moved, self.step - 1, 0)))
        grow = canvas.resized(more) - canvas.length
        appears = (canvas.position >= canvas.length[:, None]) & (canvas.position < (canvas.length + grow)[:, None])
        tokens = torch.where(appears & begins[:, None], canvas.spec.eos[0], tokens)
        tokens = torch.where(appears & grows[:, None], canvas.spec.mask, tokens)
        update = self._towards(canvas, tokens, appears, update, state.begun, moved)
        after = mixed(state.begun, after, state.inner)
        inner = blank(after, moved[:, None] & (canvas.position > at[:, None]))
        begun = state.begun | begins | (canvas.length + grow >= canvas.most)
        behind = moved[:, None] & (canvas.position >= at[:, None] + self.step)
        source = torch.where(behind, canvas.position - self.step + 1, canvas.position)
        return replace(update, grow=grow, source=source), DaedalState(inner, begun, moved)

    def notes(self, canvas: Canvas, before: DaedalState, after: DaedalState) -> Mapping[str, Tensor]:
        """Those of the policy, and whether the row is still ``growing`` before it is decoded."""
        return {**self.policy.notes(canvas, before.inner, after.inner), "growing": ~before.begun}

    def _inserted(self, canvas: Canvas, tokens: Tensor, at: Tensor) -> Tensor:
        """``[B, T]`` the tokens with ``step`` masked positions from ``at [B]`` on in place of one."""
        source = (canvas.position - self.step + 1).clamp(min=0).expand_as(tokens)
        behind = canvas.position - at[:, None]
        moved = torch.where(behind >= self.step, tokens.gather(1, source), canvas.spec.mask)
        return torch.where(behind < 0, tokens, moved)

    @staticmethod
    def _towards(
        canvas: Canvas, tokens: Tensor, appears: Tensor, update: Update, begun: Tensor, moved: Tensor
    ) -> Update:
        """The update that makes the canvas hold ``tokens [B, T]``, new positions included; that of the policy in rows
        that have ``begun`` and whose tokens have not ``moved``.
        """
        masks, kept, moves = tokens == canvas.spec.mask, begun[:, None], moved[:, None]
        own = (canvas.response | appears) & ~masks & (update.write | (tokens != canvas.tokens))
        write = torch.where(moves, own, update.write & kept) | appears & ~masks
        undone = torch.zeros_like(masks) if update.remask is None else update.remask & kept
        remask = torch.where(moves, canvas.filled & masks, undone)
        hold = None if update.hold is None else update.hold & begun
        return replace(
            update,
            write=write,
            token=torch.where(write & kept & ~moves, update.token, tokens),
            remask=remask,
            hold=hold,
        )
