"""LoPA (arXiv 2512.16229): further branches try one token more each, and the one that is surest of the rest is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import Spec, param
from ..core.errors import SpecError
from ..core.forks import Answers, Drafts
from ..core.pick import certainty
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Forks, Prediction, Sampling
from ..core.state import PER_POSITION, picked, repeated


@dataclass(frozen=True)
class LopaState:
    """The policy's state, the tokens that branches try, with what certainty these were predicted (``certain [B, T]``),
    the branch last kept (``kept [B]``), and the answers so far.
    """

    inner: Any
    drafts: Drafts
    certain: Tensor = field(metadata=PER_POSITION)
    kept: Tensor
    answers: Answers


@dataclass(frozen=True)
class Lopa(Wrapper):
    """Decodes by ``policy`` in several branches, of which each forward pass keeps the one that is surest of the rest.

    What ``policy`` commits is the base branch. The others have one token more each: the ``branches`` - 1 most certain
    of those that it left. The next forward pass predicts in all of them at once. The branch with the highest score goes
    on: the mean certainty of its masked positions, or of the ``share`` least certain ones. Its predictions serve
    ``policy``, and give the next branches. With one branch it is ``policy``.
    """

    name = "lopa"
    paper = "arXiv 2512.16229"
    refuses = "policies that probe, hold a block, renoise, or decode several canvases themselves"

    policy: Policy = param(Spec("multiblock"), "the policy that decodes each branch, as a spec")
    branches: int = param(3, "canvases of a sequence in one forward pass, its own included", ge=1, le=32)
    measure: str = param(
        "entropy",
        "what is certain: little entropy, confidence, or margin",
        choices=("entropy", "confidence", "margin"),
    )
    share: float = param(1.0, "share of the masked positions that counts, the least certain ones", gt=0, le=1)
    weight: float = param(0.0, "weight in the score of the certainty with which the branch's token was predicted",
                          ge=0, le=1)  # fmt: skip
    unanswered: str = param(
        "none", "positions that the cache left unanswered have no prediction, or the last one that they had",
        choices=("none", "last"), hidden=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        held = self.policy
        if isinstance(held, Policy) and (held.probes or held.holds or held.renoises):
            raise SpecError(f"lopa: policy must work without probes and never hold a block; {held} does not")

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs | ({self.measure} - {"confidence"})

    def init(self, canvas: Canvas, sampling: Sampling) -> LopaState:
        inner, drafts = self.policy.init(canvas, sampling), Drafts.none(canvas)
        return LopaState(inner, drafts, drafts.sure, torch.zeros_like(canvas.prompt), Answers.none(canvas))

    def ask(self, canvas: Canvas, state: LopaState) -> Ask:
        return self.policy.ask(canvas, state.inner) if self._plain else self._asked(canvas, state)[1]

    def decide(self, canvas: Canvas, prediction: Prediction, state: LopaState) -> tuple[Update, LopaState]:
        if self._plain:
            update, inner = self.policy.decide(canvas, prediction, state.inner)
            return update, replace(state, inner=inner)
        forks, ask = self._asked(canvas, state)
        if self.unanswered == "last":
            prediction = repeated(state.answers, self.branches).fill(prediction, ask.window & forks.canvas.masked)
        kept = self._kept(forks, certainty(prediction, self.measure), state)
        line = torch.arange(len(kept), device=kept.device) * self.branches + kept
        left, told = picked(forks.canvas, line), prediction.of(line)
        update, inner = self.policy.decide(left, told, state.inner)
        certain = certainty(told, self.measure)
        rest = torch.where(update.write, -torch.inf, certain)
        drafts = Drafts.best(rest, self.branches - 1, told.token, told.confidence)
        return replace(update, branch=kept), LopaState(inner, drafts, certain, kept, state.answers.after(told))

    def notes(self, canvas: Canvas, before: LopaState, after: LopaState) -> Mapping[str, Tensor]:
        """Those of the policy, the ``branch`` that was kept, and how many were ``tried`` beside the base."""
        own = {"branch": after.kept, "tried": before.drafts.rank.amax(1)}
        return {**self.policy.notes(canvas, before.inner, after.inner), **own}

    @property
    def _plain(self) -> bool:
        """Whether it is nothing but its policy."""
        return self.branches == 1 and self.unanswered == "none"

    def _asked(self, canvas: Canvas, state: LopaState) -> tuple[Forks, Ask]:
        """The branches, and what the policy asks of each; a token outside the base's window is not tried."""
        window = self.policy.ask(canvas, state.inner).window
        drafts = replace(state.drafts, rank=torch.where(window, state.drafts.rank, 0))
        forks = drafts.canvases(canvas, self.branches, nested=False)
        ask = self.policy.ask(forks.canvas, repeated(state.inner, self.branches))
        window = ask.window | window.repeat_interleave(self.branches, 0)
        return forks, replace(ask, window=window, forks=forks)

    def _kept(self, forks: Forks, value: Tensor, state: LopaState) -> Tensor:
        """``[B]`` the branch with the best score; of equals the first, but the base last.

        Args:
            forks: the branches.
            value: ``[B K, T]`` certainties of what was predicted.
            state: before this forward pass.
        """
        rows, many = len(state.kept), self.branches
        value = value.double().view(rows, many, -1)
        count = (value > -torch.inf).sum(2)
        least = (count.double() * self.share).long().clamp(min=1)[:, :, None]
        ordered = torch.where(value > -torch.inf, value, torch.inf).sort(2).values
        place = torch.arange(value.shape[2], device=value.device)
        counted = torch.where(place < torch.minimum(least, count[:, :, None]), ordered, 0.0)
        rest = torch.where(count > 0, counted.sum(2) / least[:, :, 0], 1.0)
        number = torch.arange(many, device=value.device)[:, None]
        own = torch.where((state.drafts.rank[:, None] == number) & (number > 0), state.certain[:, None], 0.0)
        score = self.weight * torch.where(number[:, 0] > 0, own.sum(2), 1.0) + (1 - self.weight) * rest
        score = score.masked_fill((forks.idle & ~forks.canvas.done).view(rows, many), -torch.inf)
        return (score.roll(-1, 1).argmax(1) + 1) % many
