"""dInfer's credit decoding (arXiv 2510.08666): what was predicted again and again is believed sooner."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import at_least, best
from ..core.policy import Policy
from ..core.predict import likeliest, read
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION


@dataclass(frozen=True)
class CreditState:
    """``credit [B, T, V]`` float32 of the current block, its ``start [B]`` (-1: none), and what sampling needs: the
    rows' parameters and ``count [B]``, forwards made.
    """

    credit: Tensor = field(metadata=PER_POSITION)
    start: Tensor
    sampling: Sampling
    count: Tensor


@dataclass(frozen=True)
class Credit(Policy):
    """Threshold decoding with logits raised by what each token has earned in its block.

    In every forward the credit of all tokens decays by ``beta`` and the likeliest of each mask, with probability p,
    earns p^``gamma``; its logit is raised by ``alpha`` ln(1 + credit). Memory: 4 T V bytes a row.
    """

    name = "credit"
    paper = "arXiv 2510.08666"
    needs = frozenset({"logits"})
    threshold = "tau"

    tau: float = param(0.9, "confidence, with the credit, from which a position is committed", ge=0, le=2)
    alpha: float = param(0.7, "weight of the credit in the logits", ge=0)
    gamma: float = param(0.2, "exponent of the probability that earns credit", ge=0)
    beta: float = param(0.8, "share of the credit that a forward leaves", ge=0, le=1)
    block_length: int | None = param(
        32, "positions per block; none: the whole response is one block", ge=1, optional=True
    )

    def init(self, canvas: Canvas, sampling: Sampling) -> CreditState:
        """No credit."""
        rows, total = canvas.tokens.shape
        credit = torch.zeros(rows, total, canvas.spec.vocab, device=canvas.tokens.device)
        return CreditState(credit, torch.full_like(canvas.prompt, -1), sampling, torch.zeros_like(canvas.prompt))

    def ask(self, canvas: Canvas, state: CreditState) -> Ask:
        """The current block."""
        return Ask(canvas.block(self.block_length))

    def decide(self, canvas: Canvas, prediction: Prediction, state: CreditState) -> tuple[Update, CreditState]:
        """Commit, and give credit."""
        assert prediction.logits is not None
        row, position = prediction.lines
        where = row, position
        start = canvas.block_start(self.block_length)
        kept = state.credit[where] * self.beta * (start == state.start)[row, None]
        top, probability = likeliest(prediction.logits)
        credit = kept.scatter_add(1, top[:, None], probability[:, None].pow(self.gamma).to(kept.dtype))
        raised = prediction.logits + self.alpha * credit.log1p()
        answer = read(raised, state.sampling, frozenset(), row, position, state.count[row])
        confidence = torch.full_like(prediction.confidence, -torch.inf).index_put(where, answer["confidence"])
        write = at_least(confidence, self.tau) | best(confidence)
        after = replace(state, credit=state.credit.index_put(where, credit), start=start, count=state.count + 1)
        return Update(write, prediction.token.index_put(where, answer["token"])), after
