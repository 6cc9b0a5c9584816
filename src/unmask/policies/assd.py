"""Any-subset speculative decoding (arXiv 2504.20456): one network drafts several tokens and verifies them exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.bigrams import guessed
from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import param
from ..core.errors import RequestError
from ..core.nets import take
from ..core.policy import Policy
from ..core.predict import gumbel, uniform
from ..core.protocols import Ask, Prediction, Sampling
from ..core.rows import compact
from ..core.state import PER_POSITION

_ACCEPT, _REST, _DRAFT = 0x5851F42D4C957F2D, 0x14057B7EF767814F, 0x2545F4914F6CDD1D  # keep uses of noise apart


@dataclass(frozen=True)
class AssdState:
    """Attributes:
    draft: ``[B, T]`` tokens drafted for the first masked positions, plus 1; 0 elsewhere.
    share: ``[B, k - 1, V]`` float64, what they were drawn from, by their place among the masked positions.
    seed, count: ``[B]`` of the noise, and how often it was drawn.
    hot: ``[B]`` rows that sample.
    """

    draft: Tensor = field(metadata=PER_POSITION)
    share: Tensor
    seed: Tensor
    count: Tensor
    hot: Tensor


@dataclass(frozen=True)
class Assd(Policy):
    """Drafts ``k`` tokens at once and keeps those that the model, asked one after the other, could have drawn itself.

    For any-subset models: what was given comes first, the response behind it from left to right, and each position is
    predicted from those before it in this order. One forward pass draws the first ``k`` masked positions independently
    and commits the first; the next one predicts each of the others behind the drafts before it, and accepts a token x
    with probability min(1, p(x) / q(x)). The first that is rejected is drawn from norm(max(p - q, 0)); if none is, the
    position behind them is predicted in the same pass (which the paper leaves out). The text has the distribution of
    ``assd(k=1)``, which draws one token per forward pass, greedy text is the same, and no text takes more passes than
    tokens. ``draft=bigram`` counts which token follows which in the text so far instead of a drafting pass.
    """

    name = "assd"
    paper = "arXiv 2504.20456"
    chooses = True
    refuses = "models not trained to predict in an order of positions, constraints, `late_eos`, a policy around it"

    k: int = param(5, "positions predicted by a forward pass", ge=1, le=64)
    draft: str = param("model", "what drafts: the model, or counts of pairs of tokens", choices=("model", "bigram"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits", "tempered"})

    @property
    def probes(self) -> int:
        return self.k

    def view(self, spec: ModelSpec) -> ModelSpec:
        return replace(spec, block=None, ordered=True) if spec.orders else spec

    def most_passes(self, positions: int) -> int:
        return positions

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        if not spec.orders:
            raise RequestError(
                "assd needs an any-subset model, trained to predict in an order of positions; the config.json of this "
                'one does not say so ("visibilities" with "order" in it), use another policy, such as threshold, or '
                "the bundled unmask-tiny-block"
            )
        if not spec.ordered:
            raise RequestError("assd decodes in an order of positions: no other policy can be around it")

    def init(self, canvas: Canvas, sampling: Sampling) -> AssdState:
        rows, zero = len(canvas.prompt), torch.zeros_like(canvas.prompt)
        share = torch.zeros(rows, self.k - 1, canvas.spec.vocab, dtype=torch.float64, device=zero.device)
        state = AssdState(torch.zeros_like(canvas.tokens), share, sampling.seed, zero, sampling.temperature > 0)
        return self._paired(canvas, state) if self.draft == "bigram" else state

    def ask(self, canvas: Canvas, state: AssdState) -> Ask:
        drafted = state.draft > 0
        many = drafted.sum(1)
        wanted = torch.where(many > 0, many + 1, self.k if self.draft == "model" else 1)
        window = canvas.masked & (canvas.masked.cumsum(1) <= wanted[:, None])
        return Ask(window, visible=canvas.past | drafted, draft=state.draft - 1)

    def decide(self, canvas: Canvas, prediction: Prediction, state: AssdState) -> tuple[Update, AssdState]:
        slot = canvas.masked.cumsum(1) - 1
        place = compact(canvas.masked, self.k)
        share = self._share(prediction, slot, state)
        drafted = take(state.draft, place, 0) - 1
        token, many = drafted.clamp(min=0)[..., None], (drafted >= 0).sum(1)
        draft = F.pad(state.share, (0, 0, 0, 1))
        mine, theirs = share.gather(2, token)[..., 0], draft.gather(2, token)[..., 0]
        chance = uniform(state.seed ^ _ACCEPT, canvas.frontier, state.count, self.k)
        taken = (drafted >= 0) & (chance * theirs < mine)
        count = taken.long().cumprod(1).sum(1)
        row = torch.arange(len(count), device=count.device)
        own, other = share[row, count.clamp(max=self.k - 1)], draft[row, count.clamp(max=self.k - 1)]
        rest = (own - other).clamp(min=0)
        rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, own)  # nothing left: rejecting had no probability
        noise = gumbel(state.seed ^ _REST, canvas.frontier, state.count, rest.shape[1])
        drawn = (rest.log() + torch.where(state.hot[:, None], noise, 0.0)).argmax(1)
        last = torch.where((count < many)[:, None], drawn[:, None], prediction.token)
        open_ = prediction.confidence > -torch.inf
        write = open_ & (slot <= count[:, None])
        update = Update(write, torch.where(slot < count[:, None], state.draft - 1, last))
        after = replace(state, count=state.count + 1)
        if self.draft == "bigram":
            return update, self._paired(canvas.apply(update), after)
        fresh = open_ & (slot > 0) & (many == 0)[:, None]
        return update, replace(after, draft=torch.where(fresh, prediction.token + 1, 0), share=share[:, 1:])

    def _share(self, prediction: Prediction, slot: Tensor, state: AssdState) -> Tensor:
        """``[B, k, V]`` the model's distributions at the positions asked for; in greedy rows the likeliest token's."""
        assert prediction.logits is not None
        row, position = prediction.lines
        found = prediction.logits.double().softmax(-1)
        sure = torch.zeros_like(found).scatter_(1, prediction.token[row, position][:, None], 1.0)
        share = found.new_zeros(len(slot), self.k, found.shape[1])
        share[row, slot[row, position]] = torch.where(state.hot[row, None], found, sure)
        return share

    def _paired(self, canvas: Canvas, state: AssdState) -> AssdState:
        """The state with drafts for the first k - 1 masked positions, from pairs of tokens in the text."""
        place = compact(canvas.masked, self.k)[:, : self.k - 1]
        draft, share = guessed(canvas, place, state.hot, state.seed ^ _DRAFT, state.count)
        return replace(state, draft=draft, share=share)

    def notes(self, canvas: Canvas, before: AssdState, after: AssdState) -> Mapping[str, Tensor]:
        return {"verifies": (before.draft > 0).any(1), "drafted": (before.draft > 0).sum(1)}
