"""Token editing (LLaDA2.1, arXiv 2602.08676): a placed token is replaced where the model has changed its mind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import Spec, param
from ..core.pick import above
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import mixed


@dataclass(frozen=True)
class EditState:
    """``inner``: of the policy around which tokens are edited. ``[B]``: the block's ``start`` (-1: none yet), and its
    forward passes since it has had no mask (``extra``).
    """

    inner: Any
    start: Tensor
    extra: Tensor


@dataclass(frozen=True)
class Edit(Wrapper):
    """Decodes by ``policy``, and in the same forward passes replaces tokens of the current block, those of the prompt
    excepted, where the likeliest token is another one and more confident than ``tau_edit``.

    A block without masks is looked at again until nothing changes any more, ``max_post_steps`` times at most. With
    ``penalty`` the token that stands one position before becomes less likely, against repetitions (JointThreshold).
    """

    name = "edit"
    paper = "arXiv 2602.08676"
    remasks = True
    chooses = True
    holds = True

    policy: Policy = param(Spec("threshold"), "the policy that decodes, as a spec")
    tau_edit: float = param(0.9, "confidence above which a token is replaced; above 1: none is", ge=0, le=2)
    max_post_steps: int = param(16, "forward passes of a block without masks at most; 0: none", ge=0)
    penalty: float = param(0.0, "taken off the logit of the token one position before; 0: off", ge=0, le=100)

    def most_passes(self, positions: int) -> int:
        return self.policy.most_passes(positions) + positions * (self.max_post_steps + 1)

    def init(self, canvas: Canvas, sampling: Sampling) -> EditState:
        never = torch.full_like(canvas.prompt, -1)
        return EditState(self.policy.init(canvas, sampling), never, never + 1)

    def ask(self, canvas: Canvas, state: EditState) -> Ask:
        ask, placed = self.policy.ask(canvas, state.inner), self._placed(canvas)
        return replace(ask, window=ask.window | placed, reread=placed, penalty=self.penalty)

    def decide(self, canvas: Canvas, prediction: Prediction, state: EditState) -> tuple[Update, EditState]:
        own = prediction.within(self.policy.ask(canvas, state.inner).window & canvas.masked)
        update, inner = self.policy.decide(canvas, own, state.inner)
        placed = self._placed(canvas)
        other = placed & (prediction.token != canvas.tokens)
        edited = other & above(torch.where(placed, prediction.confidence, -torch.inf), self.tau_edit)
        start = canvas.block_start(None)
        over = ~canvas.masked.any(1)  # it had no mask before this forward pass
        extra = torch.where(start == state.start, state.extra, 0) + over
        inner = mixed(over, state.inner, inner)  # the policy alone would not have made this forward pass
        write = update.write & ~over[:, None] | edited
        left = (canvas.masked & ~write).any(1)
        again = torch.where(over, edited.any(1) & (extra < self.max_post_steps), left | (self.max_post_steps > 0))
        return replace(update, write=write, token=torch.where(edited, prediction.token, update.token), hold=again), (
            EditState(inner, start, extra)
        )

    def notes(self, canvas: Canvas, before: EditState, after: EditState) -> Mapping[str, Tensor]:
        return self.policy.notes(canvas, before.inner, after.inner)

    @staticmethod
    def _placed(canvas: Canvas) -> Tensor:
        """``[B, T]`` tokens of the current block that may be replaced."""
        return canvas.block(None) & canvas.filled & ~canvas.fixed
