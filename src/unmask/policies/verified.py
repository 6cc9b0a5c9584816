"""FreeDave (arXiv 2510.00294): drafts of several tokens, of which those stay that one at a time would have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import Spec, param
from ..core.errors import SpecError
from ..core.forks import Drafts
from ..core.pick import best
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import picked, repeated


@dataclass(frozen=True)
class VerifiedState:
    """The drafter's state, tokens committed so far (``count [B]``), and what is drafted behind them."""

    inner: Any
    count: Tensor
    drafts: Drafts


@dataclass(frozen=True)
class Verified(Wrapper):
    """Gives the text of ``vanilla`` with one token per forward pass, in fewer: ``policy`` drafts what comes next.

    The drafts are nested canvases, each with one more of the tokens that ``policy`` would commit, the most confident
    first. One forward pass predicts in all of them. A draft stays if its token is the one that one-at-a-time decoding
    commits next on the canvas before it; the first other token ends the walk, and is right itself. So every forward
    pass commits between 1 and ``drafts`` tokens, and computes up to ``drafts`` times the positions.
    """

    name = "verified"
    paper = "arXiv 2510.00294"
    refuses = (
        "policies that probe, re-mask, hold a block, go from left to right, commit other tokens than the predicted "
        "ones, renoise, or decode several canvases themselves"
    )

    policy: Policy = param(Spec("threshold", (), (("tau", 0.3),)), "the policy that drafts, as a spec")
    drafts: int = param(4, "canvases of a sequence in one forward pass, its own included", ge=2, le=32)
    block_length: int | None = param(
        32, "positions per block; none: the whole response is one block", ge=1, optional=True
    )
    rule: str = param(
        "one", "what a draft must agree with: one token at a time, or what `policy` commits (FreeDave++)",
        choices=("one", "policy"), hidden=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        held = self.policy
        if isinstance(held, Policy) and (held.probes or held.remasks or held.chooses or held.left_to_right):
            rule = "commit tokens as predicted, in any order and for good, without probes"
            raise SpecError(f"verified: policy must {rule}; {held} does not")
        if isinstance(held, Policy) and (held.holds or held.renoises):
            raise SpecError(f"verified: policy must fill masked positions and nothing else; {held} does not")

    @property
    def branches(self) -> int:
        return self.drafts

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs - ({"tempered"} if self.rule == "one" else set())

    @property
    def reuses(self) -> bool:
        return False

    def most_passes(self, positions: int) -> int:
        return Policy.most_passes(self, positions)

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        self.policy.check(prompt, gen_length, spec)

    def init(self, canvas: Canvas, sampling: Sampling) -> VerifiedState:
        return VerifiedState(self.policy.init(canvas, sampling), torch.zeros_like(canvas.prompt), Drafts.none(canvas))

    def ask(self, canvas: Canvas, state: VerifiedState) -> Ask:
        forks = state.drafts.canvases(canvas, self.drafts, nested=True)
        number = torch.arange(self.drafts, device=canvas.tokens.device)
        block = forks.canvas.block(self.block_length)
        own = self.policy.ask(forks.canvas, repeated(state.inner, self.drafts))  # what it has to see beside predictions
        looks = own.looks and own.looks.within(block)  # nothing else may be computed, lest caches hold other things
        forks = replace(forks, step=(state.count[:, None] + number).flatten())
        return Ask(block, optional=block, score=own.score, beside=own.beside, looks=looks, forks=forks)

    def decide(self, canvas: Canvas, prediction: Prediction, state: VerifiedState) -> tuple[Update, VerifiedState]:
        forks = state.drafts.canvases(canvas, self.drafts, nested=True)
        if self.rule == "one":
            write, then = best(prediction.confidence), None
        else:
            said, then = self.policy.decide(forks.canvas, prediction, repeated(state.inner, self.drafts))
            write = said.write
        reached = self._reached(write, prediction.token, state.drafts)
        line = torch.arange(len(reached), device=reached.device) * self.drafts + reached
        left, told, write = picked(forks.canvas, line), prediction.of(line), write[line]
        if then is None:
            wanted, inner = self._drafted(left, told, state.inner)
        else:
            wanted, inner = told.confidence > -torch.inf, picked(then, line)
        rest = (left.masked & left.block(self.block_length) & ~write).sum(1)
        wanted = wanted & ~write
        if left.spec.shift:  # what predicts a block's first position lies before it: caches keep what that saw last
            wanted = wanted & (left.position != left.block_start(self.block_length)[:, None])
        score = torch.where(wanted, told.confidence, -torch.inf)
        drafts = Drafts.best(score, (rest - 1).clamp(max=self.drafts - 1), told.token, told.confidence)
        count = state.count + reached + 1
        return Update(write, told.token, branch=reached), VerifiedState(inner, count, drafts)

    def notes(self, canvas: Canvas, before: VerifiedState, after: VerifiedState) -> Mapping[str, Tensor]:
        """How many tokens were ``drafted``, and how many of these ``accepted``."""
        return {"drafted": before.drafts.rank.amax(1), "accepted": after.count - before.count - 1}

    def _drafted(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Tensor, Any]:
        """``[B, T]`` what the policy would commit, and its state then."""
        update, after = self.policy.decide(canvas, prediction.within(self.policy.ask(canvas, state).window), state)
        return update.write, after

    def _reached(self, write: Tensor, token: Tensor, drafts: Drafts) -> Tensor:
        """``[B]`` the canvas reached from the first one on: again and again the largest whose drafts are all committed
        by what is decided on the canvas before.

        Args:
            write, token: ``[B K, T]`` what is decided on each canvas.
            drafts: what the canvases have beyond the first.
        """
        rows, many = len(drafts.rank), self.drafts
        number = torch.arange(1, many, device=token.device)
        own = drafts.rank[:, None] == number[:, None]
        place = own.long().argmax(2)[:, None].expand(-1, many, -1)
        agrees = (write & (token == drafts.token.repeat_interleave(many, 0))).view(rows, many, -1).gather(2, place)
        agrees = agrees & own.any(2)[:, None]  # of each canvas with each draft
        begun = torch.arange(many, device=token.device)[:, None] >= number
        ahead = ((agrees | begun).long().cumprod(2) * ~begun).sum(2)
        reach = ahead + torch.arange(many, device=token.device)
        reached = torch.zeros_like(drafts.rank[:, 0])
        for _ in number:
            reached = reach.gather(1, reached[:, None])[:, 0]
        return reached
