"""Adaptive Parallel Decoding (arXiv 2506.00413): a small autoregressive model says how far to trust the draft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import param
from ..core.policy import Policy
from ..core.predict import forbid, gumbel, temper
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import PER_POSITION
from ..models.causal import CausalModel
from ..models.causal import load as load_verifier
from ..models.slots import Memory

_LINES = 1 << 23  # elements of [positions, vocabulary] compared at a time: 64 MiB in float64


@dataclass(frozen=True)
class ApdState:
    """What the verifier has read, of which ``text [B, T]``, how rows are sampled, and their forward passes so far."""

    memory: Memory
    text: Tensor = field(metadata=PER_POSITION)
    sampling: Sampling
    step: Tensor


@dataclass(frozen=True)
class Apd(Policy):
    """Commits from left to right as many tokens per forward pass as two models agree on (paper, algorithm 1).

    The diffusion model drafts x = argmax(log p_D + g) at the masked positions of the lookahead, g being Gumbel noise.
    A causal verifier scores the draft in one forward pass, and y = argmax(r log p_D + (1 - r) log p_AR + g) is the
    choice of the models' product under the same noise. The longest prefix with x = y is committed, its first token in
    any case. The temperature holds for both models, top-p and top-k for p_D alone. The text follows the distribution
    of neither model.

    ``preset=reference`` is the authors' code: the draft's temperature counts twice and y is greedy, without noise. The
    paper's cache is ``trailing(window=16)``. ``nfe`` does not count the verifier's forward passes; times do.
    """

    name = "apd"
    paper = "arXiv 2506.00413"
    left_to_right = True
    refuses = "text behind a gap: it commits from left to right and cannot use what stands behind a masked position"

    r: float = param(0.7, "weight of the diffusion model in the product; 1: every draft is committed", ge=0, le=1)
    lookahead: int | None = param(100, "positions in the input, from the first mask on; none: all", ge=1, optional=True)
    verifier: str | None = param(None, "folder or hub id of a causal language model; none: the bundled one", file=True)
    preset: str = param("paper", "as published, or as the authors' code", choices=("paper", "reference"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits", "allowed"})

    @property
    def chooses(self) -> bool:
        return self.preset == "reference"

    @cached_property
    def judge(self) -> CausalModel:
        """The verifier; loaded once, freed with the policy."""
        return load_verifier(self.verifier)

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        self.judge.fits(spec)
        self.judge.check(prompt, len(prompt) + gen_length)

    def init(self, canvas: Canvas, sampling: Sampling) -> ApdState:
        return ApdState(self.judge.memory(canvas), canvas.tokens, sampling, torch.zeros_like(canvas.prompt))

    def ask(self, canvas: Canvas, state: ApdState) -> Ask:
        if self.lookahead is None:
            return Ask(canvas.masked)
        near = canvas.position < (canvas.frontier + self.lookahead)[:, None]
        return Ask(canvas.masked & near, visible=near)

    def decide(self, canvas: Canvas, prediction: Prediction, state: ApdState) -> tuple[Update, ApdState]:
        asked = prediction.confidence > -torch.inf
        row, position = prediction.lines
        logits, allowed = prediction.logits, prediction.allowed
        assert logits is not None
        if not len(row):  # every row is held at a block that is full
            return Update(asked, canvas.tokens), state
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        draft = self._reheated(logits, row, position, state) if self.chooses else prediction.token[row, position]
        tokens = canvas.tokens.index_put((row, position), draft)
        read = state.memory.cropped(canvas.first(canvas.tokens != state.text))  # tokens may have been replaced since
        judged, memory = self.judge.score(tokens, row, position, read)
        judged = _aligned(judged, logits.shape[1], canvas.spec)
        if allowed is not None:
            judged.masked_fill_(~allowed, -torch.inf)
        choice = self._choice(logits, judged, row, position, state)
        agreed = torch.zeros_like(asked).index_put((row, position), draft == choice)
        agreed = agreed | (canvas.position == canvas.frontier[:, None])
        write = asked & ((asked & ~agreed).cumsum(1) == 0)
        known = memory.cropped(canvas.frontier + write.sum(1) - 1)
        return Update(write, tokens), replace(state, memory=known, text=tokens, step=state.step + 1)

    def _reheated(self, logits: Tensor, row: Tensor, position: Tensor, state: ApdState) -> Tensor:
        """``[N]`` the authors' draft, in which the temperature counts twice."""
        heat = state.sampling.temperature[row][:, None]
        parts = self._scaled(logits, row, position, state)
        return torch.cat([(scaled + heat[at] * noise).argmax(-1) for at, scaled, noise in parts])

    def _choice(self, logits: Tensor, judged: Tensor, row: Tensor, position: Tensor, state: ApdState) -> Tensor:
        """``[N]`` what the product of both models chooses, of their logits ``[N, V]``."""
        if self.chooses:
            return self._product(logits, judged).argmax(-1)
        heat = torch.where(state.sampling.temperature > 0, state.sampling.temperature, 1.0)[row][:, None]
        parts = self._scaled(logits, row, position, state)
        return torch.cat([(self._product(s, judged[at] / heat[at]) + noise).argmax(-1) for at, s, noise in parts])

    def _product(self, own: Tensor, other: Tensor) -> Tensor:
        """``[N, V]`` weighted log-odds; a model of weight 0 has no influence, not even by its -inf."""
        if self.r in (0, 1):
            return own if self.r else other
        return self.r * own + (1 - self.r) * other

    @staticmethod
    def _scaled(
        logits: Tensor, row: Tensor, position: Tensor, state: ApdState
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The draft's log-odds at the rows' temperature and its noise, ``[n, V]`` each, some lines at a time."""
        size = max(1, _LINES // logits.shape[1])
        for begin in range(0, len(logits), size):
            at = slice(begin, begin + size)
            scaled = temper(logits[at], state.sampling, row[at])
            if not state.sampling.samples:
                yield at, scaled, torch.zeros_like(scaled[:, :1])
                continue
            hot = (state.sampling.temperature[row[at]] > 0)[:, None]
            noise = gumbel(state.sampling.seed[row[at]], position[at], state.step[row[at]], logits.shape[1])
            yield at, scaled, torch.where(hot, noise, 0.0)


def _aligned(judged: Tensor, vocab: int, spec: ModelSpec) -> Tensor:
    """The verifier's logits for the model's ``vocab`` ids; -inf where it does not know one, or it is suppressed."""
    judged = F.pad(judged, (0, max(0, vocab - judged.shape[1])), value=-torch.inf)
    return forbid(judged[:, :vocab], spec)
