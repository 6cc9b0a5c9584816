"""dInfer's credit decoding (arXiv 2510.08666): tokens predicted again and again are committed sooner."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import blocks, param
from ..core.pick import at_least, best
from ..core.policy import Policy
from ..core.predict import choose, delayed, likeliest
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class CreditState:
    """Credit in the current block of W positions: of each position, the tokens that have been its likeliest.

    A block takes at most as many forward passes as it has positions, so that W tokens per position are enough.

    Attributes:
        token: ``[B, W, W]`` int32, ids plus 1; 0: none.
        credit: ``[B, W, W]`` float32, of these tokens.
        start: ``[B]`` the block's first position; -1: none yet.
        passes: ``[B]`` forward passes in the block.
        sampling: the rows' parameters.
        count: ``[B]`` forward passes of the row.
    """

    token: Tensor
    credit: Tensor
    start: Tensor
    passes: Tensor
    sampling: Sampling
    count: Tensor


@dataclass(frozen=True)
class Credit(Policy):
    """Threshold decoding with logits raised by the credit that each token has earned in its block.

    In every forward pass the credit of all tokens decays by ``beta``, and the likeliest token of each masked position,
    of probability p, earns p^``gamma``. A token's logit is raised by ``alpha`` ln(1 + credit).
    """

    name = "credit"
    paper = "arXiv 2510.08666"
    needs = frozenset({"logits"})
    threshold = "tau"
    chooses = True

    tau: float = param(0.9, "confidence, credit included, from which a position is committed", ge=0, le=2)
    alpha: float = param(0.7, "weight of the credit in the logits", ge=0)
    gamma: float = param(0.2, "exponent of the probability that earns credit", ge=0)
    beta: float = param(0.8, "share of the credit that remains after a forward pass", ge=0, le=1)
    block_length: int | None = blocks()

    def init(self, canvas: Canvas, sampling: Sampling) -> CreditState:
        longest = int((canvas.most - canvas.prompt).max())
        width = longest if self.block_length is None else min(self.block_length, longest)
        zero = torch.zeros_like(canvas.prompt)
        token = torch.zeros(len(zero), width, width, dtype=torch.int32, device=zero.device)
        return CreditState(token, token.float(), zero - 1, zero, sampling, zero)

    def ask(self, canvas: Canvas, state: CreditState) -> Ask:
        return Ask(canvas.block(self.block_length))

    def decide(self, canvas: Canvas, prediction: Prediction, state: CreditState) -> tuple[Update, CreditState]:
        assert prediction.logits is not None
        where = row, position = prediction.lines
        start = canvas.block_start(self.block_length)
        same = start == state.start
        passes = torch.where(same, state.passes, 0)
        at = row, position - start[row]
        top, probability = likeliest(prediction.logits)
        token = state.token[at] * same[row, None]
        credit = state.credit[at] * self.beta * same[row, None]
        earns = token == top[:, None] + 1
        place = torch.arange(token.shape[1], device=row.device) == passes[row, None]
        earns = torch.where(earns.any(1, keepdim=True), earns, place)
        token = torch.where(earns, top[:, None] + 1, token).int()
        credit = torch.where(earns, credit + probability[:, None].pow(self.gamma).float(), credit)
        bonus = (self.alpha * credit.log1p()).to(prediction.logits.dtype)
        raised = prediction.logits.scatter_add(1, (token - 1).clamp(min=0).long(), bonus)
        answer = choose(raised, canvas, state.sampling, row, position, state.count)
        chosen = prediction.token.index_put(where, answer["token"])
        confidence = torch.full_like(prediction.confidence, -torch.inf).index_put(where, answer["confidence"])
        confidence = delayed(canvas, chosen, confidence, state.sampling)
        write = at_least(confidence, self.tau) | best(confidence)
        after = replace(
            state,
            token=state.token.index_put(at, token),
            credit=state.credit.index_put(at, credit),
            start=start,
            passes=passes + 1,
            count=state.count + 1,
        )
        return Update(write, chosen), after
