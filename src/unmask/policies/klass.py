"""KLASS (arXiv 2511.05664): commit what is confident and whose distribution has stopped changing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import at_least, best
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION, Slab

_LEAST = torch.finfo(torch.float32).min  # log-probability of suppressed tokens
_AT_ONCE = 1 << 21  # elements of [positions, vocabulary] compared at a time


@dataclass(frozen=True)
class KlassState:
    """What earlier forward passes predicted.

    Attributes:
        logp: ``[B, L + 1, V]`` float32, log-probabilities of each position of the response in the last forward pass
            that computed it; written in place, the last place by positions that were not computed.
        seen: ``[B, T]`` positions that have some.
        calm: ``[B, T]`` consecutive forward passes, of those that computed the position, with a KL divergence below
            ``kl`` from the one before.
    """

    logp: Slab
    seen: Tensor = field(metadata=PER_POSITION)
    calm: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Klass(Policy):
    """Commits the positions of the current block whose confidence reaches ``tau`` and whose distribution is stable.

    Stable: KL(p_t || p_{t-1}) < ``kl`` in each of the last ``history`` forward passes that computed the position; a
    prediction reused by a cache is no evidence and is not counted. Where no position is stable and confident, the most
    confident one is committed. The whole response is predicted in every forward pass, only the block is committed.

    Memory: 4 L V bytes per row for a response of L.
    """

    name = "klass"
    paper = "arXiv 2511.05664"
    spans = True
    needs = frozenset({"logits"})
    threshold = "tau"

    tau: float = param(0.9, "confidence from which a stable position is committed", ge=0, le=2)
    kl: float = param(0.01, "KL divergence in nats below which a distribution is unchanged", gt=0)
    history: int = param(2, "forward passes for which it must be unchanged; 0: no test", ge=0, le=64)
    block_length: int | None = blocks()

    def init(self, canvas: Canvas, sampling: Sampling) -> KlassState:
        width = 1 + int((canvas.most - canvas.prompt).max())
        like = torch.zeros(0, device=canvas.tokens.device)
        logp = Slab(len(canvas.tokens), width, (canvas.spec.vocab,), like)
        return KlassState(logp, torch.zeros_like(canvas.valid), torch.zeros_like(canvas.tokens))

    def ask(self, canvas: Canvas, state: KlassState) -> Ask:
        response = canvas.block(None)
        return Ask(response, optional=response & ~canvas.block(self.block_length) if self.block_length else response)

    def decide(self, canvas: Canvas, prediction: Prediction, state: KlassState) -> tuple[Update, KlassState]:
        confidence = torch.where(canvas.block(self.block_length), prediction.confidence, -torch.inf)
        state = self._compared(canvas, prediction, state)
        sure = at_least(confidence, self.tau) & (state.calm >= self.history)
        return Update(sure | best(confidence) & ~sure.any(1, keepdim=True), prediction.token), state

    def _compared(self, canvas: Canvas, prediction: Prediction, state: KlassState) -> KlassState:
        """The state with this forward pass's distributions, each compared with the one before."""
        assert prediction.logits is not None
        assert prediction.fresh is not None
        row, position = prediction.lines
        fresh, held = prediction.fresh[row, position], state.logp.data
        place, moved = position - canvas.prompt[row], list[Tensor]()
        kept = torch.where(fresh, place, held.shape[1] - 1)
        size = max(1, _AT_ONCE // canvas.spec.vocab)
        for at in (slice(first, first + size) for first in range(0, len(row), size)):
            now = prediction.logits[at].log_softmax(-1).clamp_(min=_LEAST)
            change = now - held[row[at], place[at]]
            moved.append(change.mul_(now.exp()).sum(-1, dtype=torch.float64))
            held[row[at], kept[at]] = now.to(held.dtype)
        below = torch.cat(moved) < self.kl if moved else fresh
        calm = torch.where(state.seen[row, position] & below, state.calm[row, position] + 1, 0)
        where = (row, position)
        return replace(
            state,
            seen=state.seen.index_put(where, state.seen[where] | fresh),
            calm=state.calm.index_put(where, torch.where(fresh, calm, state.calm[where])),
        )
