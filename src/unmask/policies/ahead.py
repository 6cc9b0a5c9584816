"""Block models that begin a block before the one in front of it is full (the pipeline of D2F, arXiv 2508.09192)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import Spec, param
from ..core.errors import RequestError
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import mixed


@dataclass(frozen=True)
class AheadState:
    """The states of ``policy`` for each block that may be open, the foremost first; ``fresh``: of one not begun."""

    blocks: tuple[Any, ...]
    fresh: Any


@dataclass(frozen=True)
class Ahead(Wrapper):
    """Decodes up to ``blocks`` blocks of a block model at once, each by ``policy`` with a state of its own.

    A further block is begun as soon as the share ``add`` of the last one begun is filled. It sees that one as far as
    it is filled, so what it commits rests on less than later: more tokens per forward pass, at some accuracy.
    ``blockwise`` stores a block when it and all before it are full.
    """

    name = "ahead"
    paper = "arXiv 2508.09192"
    refuses = (
        "models without blocks, shifted ones, policies that hold a block (`edit`), look at attention (`dawn`), or go "
        "from left to right (`apd`)"
    )

    policy: Policy = param(Spec("threshold"), "the policy that decodes, as a spec")
    blocks: int = param(2, "blocks decoded at once at most", ge=2, le=8)
    add: float = param(0.1, "share of a block that must be filled before the next one is begun", ge=0, le=1)

    @property
    def probes(self) -> int:
        return self.policy.probes * self.blocks

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        if spec.block is None or spec.shift:
            kind = "a shifted one" if spec.block else "one without blocks"
            raise RequestError(f"ahead needs a block model whose positions predict themselves; this is {kind}")
        if self.policy.holds:
            raise RequestError(f"ahead cannot decode by {self.policy.name}, which holds a block until it is settled")
        if self.policy.watches:
            raise RequestError(f"ahead cannot decode by {self.policy.name}, which looks at the attention of one block")
        if self.policy.left_to_right:
            raise RequestError(f"ahead cannot decode by {self.policy.name}, which goes from left to right")
        self.policy.check(prompt, gen_length, spec)

    def init(self, canvas: Canvas, sampling: Sampling) -> AheadState:
        fresh = self.policy.init(canvas, sampling)
        return AheadState((fresh,) * self.blocks, fresh)

    def ask(self, canvas: Canvas, state: AheadState) -> Ask:
        first, *others = (self.policy.ask(view, own) for view, own in self._views(canvas, state))
        size, joint = canvas.spec.block or 0, first
        for number, ask in enumerate(others, start=1):
            here = canvas.position >= (canvas.base + number * size)[:, None]
            begun = (canvas.ahead >= number)[:, None]
            asked = {name: getattr(ask, name) for name in _MASKS}
            asked |= {name: part & begun for name in ("window", "probe", "score") if (part := asked[name]) is not None}
            both: dict[str, Any] = {name: _where(here, asked[name], getattr(joint, name)) for name in _MASKS}
            joint = replace(joint, cell=None, **both)
        return replace(joint, skipped=None)

    def decide(self, canvas: Canvas, prediction: Prediction, state: AheadState) -> tuple[Update, AheadState]:
        update, after = None, []
        for number, (view, own) in enumerate(self._views(canvas, state)):
            window = self.policy.ask(view, own).window & view.masked
            said, then = self.policy.decide(view, prediction.within(window), own)
            begun = canvas.ahead >= number
            after.append(mixed(begun, then, own))
            update = said if update is None else _joined(update, said, begun[:, None])
        assert update is not None
        return self._moved(canvas, update, tuple(after), state.fresh)

    def notes(self, canvas: Canvas, before: AheadState, after: AheadState) -> Mapping[str, Tensor]:
        return self.policy.notes(replace(canvas, ahead=canvas.ahead * 0), before.blocks[0], after.blocks[0])

    def _views(self, canvas: Canvas, state: AheadState) -> list[tuple[Canvas, Any]]:
        """The canvas as if each of the blocks were the current one."""
        alone, size = torch.zeros_like(canvas.ahead), canvas.spec.block or 0
        first = replace(canvas, ahead=alone)
        later = (replace(canvas, ahead=alone, held=canvas.base + number * size) for number in range(1, self.blocks))
        return list(zip((first, *later), state.blocks, strict=True))

    def _moved(self, canvas: Canvas, update: Update, states: tuple[Any, ...], fresh: Any) -> tuple[Update, AheadState]:
        """States of blocks that are full give way to those behind them; and whether a further block is begun."""
        after, size = canvas.apply(update), canvas.spec.block or 0
        full, ahead = (after.base - canvas.base) // size, canvas.ahead
        for _ in range(self.blocks):
            moves = (full > 0) & ~after.done
            states = tuple(mixed(moves, then, now) for now, then in zip(states, (*states[1:], fresh), strict=True))
            full, ahead = full - moves.long(), (ahead - moves.long()).clamp(min=0)
        last = after.base + ahead * size
        here = (after.position >= last[:, None]) & (after.position < (last + size)[:, None]) & after.valid
        empty = here & (after.tokens == after.spec.mask)
        more = (1 - empty.sum(1) / here.sum(1).clamp(min=1) >= self.add) & (ahead < self.blocks - 1)
        return replace(update, ahead=ahead + more), AheadState(states, fresh)


_MASKS = ("window", "visible", "stale", "probe", "score", "optional")


def _where(here: Tensor, later: Tensor | None, before: Tensor | None) -> Tensor | None:
    return before if later is None or before is None else torch.where(here, later, before)


def _joined(first: Update, second: Update, begun: Tensor) -> Update:
    write = second.write & begun
    remask = first.remask
    if remask is not None and second.remask is not None:
        remask = remask | second.remask & begun
    return replace(first, write=first.write | write, token=torch.where(write, second.token, first.token), remask=remask)
