"""Cascaded decoding (arXiv 2006.01112) for masked models: the best path through few candidates per position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.chain import max_marginals, viterbi
from ..core.config import blocks, param
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION
from ..models.causal import CausalModel
from ..models.causal import load as load_verifier
from ..models.slots import Memory


@dataclass(frozen=True)
class CascadeState:
    """What the verifier has read, and ``text [B, T]`` as it was then."""

    memory: Memory
    text: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Cascade(Policy):
    """Takes the ``k`` best tokens of each of ``window`` positions and commits a prefix of the best path through them.

    A path scores the diffusion model's log-probabilities with weight ``r`` and, with ``order=1``, those of a causal
    verifier for each token behind the one before it with weight 1 - r. The verifier reads all candidates in one pass,
    each behind the trunk: the best token of every position before it. In each further round the candidates with the
    worst max-marginals leave, half of them, and the best path so far becomes the trunk. The path is exact (Viterbi).
    Committed are its tokens up to the first whose max-marginal leads by less than ``margin`` nats, at least one. The
    paper trains one network for all orders up to 4; here pair scores are another model's. Greedy at any temperature.
    """

    name = "cascade"
    paper = "arXiv 2006.01112"
    chooses = True
    left_to_right = True
    refuses = "text behind a gap: it commits from left to right and cannot use what stands behind a masked position"

    k: int = param(8, "candidates per position", ge=1, le=64)
    order: int = param(1, "0: each position alone; 1: pairs of neighbours", ge=0, le=1)
    rounds: int = param(1, "scorings of pairs per forward pass", ge=1, le=4)
    window: int = param(16, "positions from the first masked one on that are decoded together", ge=1, le=256)
    margin: float = param(2.0, "lead in nats that a token needs over the position's next one", ge=0)
    r: float = param(0.5, "weight of the diffusion model", ge=0, le=1)
    block_length: int | None = blocks()
    verifier: str | None = param(None, "folder or hub id of a causal language model; none: the bundled one", file=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits"})

    @cached_property
    def judge(self) -> CausalModel:
        """The verifier; loaded once, freed with the policy."""
        return load_verifier(self.verifier)

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        if self.order:
            self.judge.fits(spec)
            self.judge.check(prompt, len(prompt) + gen_length)

    def init(self, canvas: Canvas, sampling: Sampling) -> CascadeState:
        rows, total = canvas.tokens.shape
        spare = self.window * self.k if self.order else 0
        device = canvas.tokens.device
        none = Memory([], [], torch.zeros(rows, dtype=torch.long, device=device))
        return CascadeState(self.judge.empty(rows, total + spare, device) if self.order else none, canvas.tokens)

    def ask(self, canvas: Canvas, state: CascadeState) -> Ask:
        return Ask(canvas.block(self.block_length))

    def decide(self, canvas: Canvas, prediction: Prediction, state: CascadeState) -> tuple[Update, CascadeState]:
        total = canvas.tokens.shape[1]
        asked = prediction.confidence > -torch.inf
        place = canvas.frontier[:, None] + torch.arange(self.window, device=asked.device)
        inside = asked.gather(1, place.clamp(max=total - 1)) & (place < total)
        inside = inside & (~inside).cumsum(1).eq(0)
        options, unary = self._candidates(canvas, prediction, place.clamp(max=total - 1), inside)
        start, pair = torch.zeros_like(unary[:, 0]), unary.new_zeros(*unary[:, 1:].shape, unary.shape[2])
        memory = state.memory.cropped(canvas.first(canvas.tokens != state.text))  # tokens may have been replaced since
        for round_ in range(self.rounds if self.order else 0):
            if round_:
                options, unary = self._pruned(options, unary, start, pair)
            begin = canvas.frontier.clamp(max=total - 1)
            start, pair, memory = self.judge.branch(canvas.tokens, begin, options, memory)
            start, pair = (1 - self.r) * start.double(), (1 - self.r) * pair.double()
            pair = torch.where(inside[:, 1:, None, None], pair, 0.0)
        whole = torch.cat([unary[:, :1] + start[:, None], unary[:, 1:]], 1)
        path = viterbi(whole, pair)
        best = max_marginals(whole, pair).topk(min(2, unary.shape[2]), -1).values
        lead = best[..., 0] - best[..., 1] if unary.shape[2] > 1 else torch.full_like(best[..., 0], torch.inf)
        taken = inside & ((lead < self.margin).cumsum(1) == 0)
        taken[:, 0] |= inside[:, 0]
        chosen = options.gather(2, path[..., None])[..., 0]
        bare = torch.zeros(len(asked), total + 1, dtype=torch.long, device=asked.device)
        goal = torch.where(taken, place, total)
        write = bare.bool().scatter(1, goal, taken)[:, :total]
        token = bare.scatter(1, goal, chosen)[:, :total]
        return Update(write, token), CascadeState(memory, canvas.tokens)

    def _candidates(
        self, canvas: Canvas, prediction: Prediction, place: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``[B, N, K]`` the best tokens of each position, the best first, and their weighted log-probabilities; behind
        the end of the block one candidate without a score.
        """
        row, position = prediction.lines
        assert prediction.logits is not None
        top = prediction.logits.double().log_softmax(-1).topk(min(self.k, prediction.logits.shape[1]), -1)
        shape = (*canvas.tokens.shape, top.values.shape[1])
        score = torch.zeros(shape, dtype=torch.float64, device=place.device)
        ids = torch.zeros(shape, dtype=torch.long, device=place.device)
        score[row, position], ids[row, position] = top.values, top.indices
        at = place[..., None].expand(-1, -1, shape[2])
        alone = torch.arange(shape[2], device=place.device) == 0
        weighted = torch.where(score.gather(1, at) > -torch.inf, self.r * score.gather(1, at), -torch.inf)
        none = torch.where(alone, 0.0, -torch.inf).double()
        found = torch.where(inside[..., None], ids.gather(1, at), 0)
        if self.order:  # what the verifier does not know has no probability here either
            found = found.clamp(max=self.judge.vocab - 1)
        return found, torch.where(inside[..., None], weighted, none)

    @staticmethod
    def _pruned(options: Tensor, unary: Tensor, start: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        """The better half of the candidates by max-marginals; the best path's come first."""
        whole = torch.cat([unary[:, :1] + start[:, None], unary[:, 1:]], 1)
        value = max_marginals(whole, pair)
        value = value.scatter(2, viterbi(whole, pair)[..., None], torch.inf)
        kept = value.topk(max(1, options.shape[2] // 2), -1).indices
        return options.gather(2, kept), unary.gather(2, kept)
