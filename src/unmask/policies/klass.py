"""KLASS (arXiv 2511.05664): commit what is confident and has stopped moving."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import at_least, best
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION


@dataclass(frozen=True)
class KlassState:
    """What is known of earlier forwards.

    Attributes:
        logp: ``[B, T, V]`` float32 log-probabilities of the last forward that computed each position.
        seen: ``[B, T]`` positions that have some.
        calm: ``[B, T]`` computed forwards in a row whose distribution moved by less than ``kl``.
    """

    logp: Tensor = field(metadata=PER_POSITION)
    seen: Tensor = field(metadata=PER_POSITION)
    calm: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Klass(Policy):
    """Commits the positions of the block whose confidence reaches ``tau`` and whose distribution has been stable.

    Stable: KL(p_t || p_{t-1}) < ``kl`` in each of the last ``history`` forwards that computed the position (a result
    that a cache has kept proves nothing and is not counted). Where no position is stable and confident, the most
    confident one. The whole response is watched, block by block committed. Memory: 4 T V bytes a row.
    """

    name = "klass"
    paper = "arXiv 2511.05664"
    needs = frozenset({"logits"})
    threshold = "tau"

    tau: float = param(0.9, "confidence from which a stable position is committed", ge=0, le=2)
    kl: float = param(0.01, "KL divergence in nats below which a position has not moved", gt=0)
    history: int = param(2, "forwards in a row in which a position must not have moved; 0: no test", ge=0, le=64)
    block_length: int | None = param(
        32, "positions per block; none: the whole response is one block", ge=1, optional=True
    )

    def init(self, canvas: Canvas, sampling: Sampling) -> KlassState:
        """Nothing seen."""
        rows, total = canvas.tokens.shape
        logp = torch.zeros(rows, total, canvas.spec.vocab, device=canvas.tokens.device)
        return KlassState(logp, torch.zeros_like(canvas.valid), torch.zeros_like(canvas.tokens))

    def ask(self, canvas: Canvas, state: KlassState) -> Ask:
        """The whole response; answers outside the block are only watched."""
        response = canvas.block(None)
        return Ask(response, optional=response & ~canvas.block(self.block_length) if self.block_length else response)

    def decide(self, canvas: Canvas, prediction: Prediction, state: KlassState) -> tuple[Update, KlassState]:
        """Commit, and remember the distributions."""
        confidence = torch.where(canvas.block(self.block_length), prediction.confidence, -torch.inf)
        state = self._watch(prediction, state)
        sure = at_least(confidence, self.tau) & (state.calm >= self.history)
        return Update(sure | best(confidence) & ~sure.any(1, keepdim=True), prediction.token), state

    def _watch(self, prediction: Prediction, state: KlassState) -> KlassState:
        assert prediction.logits is not None
        assert prediction.fresh is not None
        row, position = prediction.lines
        now = prediction.logits.log_softmax(-1)
        before = state.logp[row, position]
        moved = torch.where(now > -torch.inf, now.double().exp() * (now.double() - before), 0.0).sum(-1)
        fresh = prediction.fresh[row, position]
        calm = torch.where(state.seen[row, position] & (moved < self.kl), state.calm[row, position] + 1, 0)
        where = (row, position)
        return KlassState(
            state.logp.index_put(where, torch.where(fresh[:, None], now.to(before.dtype), before)),
            state.seen.index_put(where, state.seen[where] | fresh),
            state.calm.index_put(where, torch.where(fresh, calm, state.calm[where])),
        )
