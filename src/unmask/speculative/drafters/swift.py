"""SWIFT (arXiv 2410.06916): the target drafts itself, without some sublayers, which it chooses while decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ...core.config import param
from ...core.errors import ModelError
from ...core.predict import gumbel
from ...models.slots import ATTENTION, FEED, Reading, Sublayer
from ..accept import DRAFT, distribution, moment
from ..drafter import Accepted, Context, Drafter
from ..target import Target
from ..tree import ROOT, Tree

_STEPS = ((0.95, (3, 1)), (0.8, (5, 3)), (0.5, (8, 5)), (-1.0, (10, 10)))  # above it so many siblings; and sampling
_MOST = 10
_PATIENCE, _PROPOSALS, _ENOUGH = 300, 1000, 0.95  # of the search: without gain, in all, a match that is good enough
_BAYES, _KAPPA, _POOL, _HELD = 25, 2.576, 256, 128


@dataclass
class Search:
    """The search for sublayers to skip; it goes on from request to request.

    Attributes:
        choices: sublayers that may be skipped.
        count: how many are.
        skip: the best ones so far; ``score``: their match.
        tried: every set tried last, as indices of choices, with its match.
        proposals, idle: sets tried, in all and since the last gain.
    """

    choices: list[Sublayer]
    count: int
    skip: tuple[int, ...]
    generator: torch.Generator
    score: float = -1.0
    tried: list[tuple[tuple[int, ...], float]] = field(default_factory=list)
    proposals: int = 0
    idle: int = 0
    rounds: int = 0

    @property
    def over(self) -> bool:
        """Whether the search has ended."""
        return self.score > _ENOUGH or self.idle > _PATIENCE or self.proposals > _PROPOSALS

    def sublayers(self, chosen: Sequence[int]) -> frozenset[Sublayer]:
        """The sublayers that indices stand for."""
        return frozenset(self.choices[i] for i in chosen)

    def drawn(self) -> tuple[int, ...]:
        """A random set."""
        order = torch.randperm(len(self.choices), generator=self.generator)
        return tuple(sorted(order[: self.count].tolist()))

    def proposed(self) -> tuple[int, ...]:
        """The next set to try: a random one, every 25th time the most promising of many."""
        if (self.proposals + 1) % _BAYES or len(self.tried) < 2:
            return self.drawn()
        pool = [self.drawn() for _ in range(_POOL)]
        return pool[int(_bound(self._flags([s for s, _ in self.tried]), self._scores, self._flags(pool)).argmax())]

    def told(self, chosen: tuple[int, ...], score: float) -> None:
        """How well a set matches."""
        self.tried = [*self.tried, (chosen, score)][-_HELD:]
        self.proposals += 1
        self.idle += 1
        if score > self.score:
            self.skip, self.score, self.idle = chosen, score, 0

    @property
    def _scores(self) -> Tensor:
        return torch.tensor([score for _, score in self.tried], dtype=torch.float64)

    def _flags(self, sets: Sequence[Sequence[int]]) -> Tensor:
        flags = torch.zeros(len(sets), len(self.choices), dtype=torch.float64)
        for row, chosen in enumerate(sets):
            flags[row, list(chosen)] = 1.0
        return flags


def _bound(seen: Tensor, score: Tensor, new: Tensor) -> Tensor:
    """Upper confidence bounds ``[M]`` of sets ``new [M, C]`` by a Gaussian process (Matern 5/2) on ``seen [N, C]``."""
    scale = math.sqrt(seen.shape[1] / 4)
    spread = score.std().clamp(min=1e-3)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        r = math.sqrt(5) * torch.cdist(a, b) / scale
        return (1 + r + r**2 / 3) * torch.exp(-r)

    inner = kernel(seen, seen) + 1e-3 * torch.eye(len(seen), dtype=seen.dtype)
    cross = kernel(new, seen)
    solved = torch.linalg.solve(inner, torch.cat([((score - score.mean()) / spread)[:, None], cross.T], 1))
    mean, variance = cross @ solved[:, 0], 1 - (cross * solved[:, 1:].T).sum(1)
    bound: Tensor = mean + _KAPPA * variance.clamp(min=0).sqrt()
    return bound


@dataclass(frozen=True)
class Swift(Drafter):
    """The target drafts a chain of tokens without some of its attention and feed-forward sublayers.

    Drafting stops at the first token of a probability below ``stop``. Each drafted position has siblings in the tree, 3
    to 10, more where the draft was less sure (sampling: 1 to 10, drawn without replacement). Every ``interval`` rounds
    another random set of sublayers is tried, every 25th of them found by Bayesian optimisation: it has to predict the
    last ``window`` tokens in one pass, and the set that predicts most of them is used. The first and the last layer
    are never skipped. One set serves all rows of a batch and goes on to the next requests.
    """

    name = "swift"
    paper = "arXiv 2410.06916"

    ratio: float = param(0.45, "share of the sublayers that are skipped", gt=0, le=0.9)
    stop: float = param(0.8, "probability of a drafted token below which drafting stops", ge=0, le=1)
    length: int = param(25, "most tokens of the chain", ge=1, le=128)
    tree: bool = param(True, "siblings beside the chain")
    window: int = param(32, "tokens that a set of sublayers has to predict", ge=4, le=256)
    interval: int = param(1, "rounds from one set tried to the next; 0: none is tried", ge=0)

    @property
    def nodes(self) -> int:
        return max(self.length * (_MOST if self.tree else 1), self.window + 1)

    @cached_property
    def _searches(self) -> dict[Target, Search]:
        return {}

    def check(self, target: Target) -> None:
        layers = target.network.arch.layers
        if int(2 * (layers - 2) * self.ratio) < 1:
            raise ModelError(
                f"{self.name}: ratio={self.ratio:g} of a model of {layers} layers skips nothing: the first and last "
                "layers stay; give a larger ratio, or a deeper model"
            )

    def begin(self, context: Context) -> Search:
        target = context.target
        if target not in self._searches:
            inner = range(1, target.network.arch.layers - 1)
            choices = [(layer, part) for part in (ATTENTION, FEED) for layer in inner]
            count = int(len(choices) * self.ratio)
            every = [i for i, (layer, _) in enumerate(choices) if layer % 2 == 1]  # alternate layers, the rest follows
            rest = [i for i in range(len(choices)) if i not in every]
            skip = tuple(sorted([*every, *rest][:count]))
            self._searches[target] = Search(choices, count, skip, torch.Generator().manual_seed(0))
        return self._searches[target]

    def propose(self, context: Context, state: Search) -> Tree | None:
        target = context.target
        if any(len(text) - known != 1 for text, known in zip(context.texts, target.known, strict=True)):
            return None  # the prompt comes first
        passes = self._improve(context, state)
        skip = state.sublayers(state.skip)
        rows, sampling = len(context.texts), context.sampling
        row = torch.arange(rows, device=target.device)
        token = torch.tensor([text[-1:] for text in context.texts], device=target.device)
        order: list[Tensor] = []
        shares: list[Tensor] = []
        sure: list[list[float]] = []
        going = [True] * rows
        count = min(_MOST if self.tree else 1, target.model.vocab)
        for depth in range(min(self.length, context.room)):
            hidden = target.draft(self._next(context, token, depth), skip)
            passes += 1
            logits = target.network.logits(hidden[:, 0])
            share = distribution(logits, sampling, row) if sampling.samples else logits
            noise = _noise(context, depth, logits.shape[1]) if sampling.samples else 0.0
            order.append(((share.log() if sampling.samples else share) + noise).topk(count, -1).indices)
            shares.append(share)
            token = order[-1][:, :1]
            sure.append(logits.softmax(-1).gather(1, token)[:, 0].tolist())
            sure[-1] = [p if on else -1.0 for p, on in zip(sure[-1], going, strict=True)]  # -1: not drafted
            going = [on and p >= self.stop for on, p in zip(going, sure[-1], strict=True)]
            if not any(going):
                break
        return self._tree(order, shares if sampling.samples else None, sure, sampling.samples, passes)

    def _tree(
        self, order: list[Tensor], shares: list[Tensor] | None, sure: list[list[float]], sampled: bool, passes: int
    ) -> Tree:
        """A chain with leaves beside it; ``sure[depth][row]``: -1 where a row has stopped before."""
        parents: list[tuple[int, ...]] = []
        pick: list[list[tuple[int, int]]] = []
        for row in range(len(sure[0])):
            above: list[int] = []
            own: list[tuple[int, int]] = []
            last = ROOT
            for depth, line in enumerate(sure):
                if line[row] < 0:
                    break
                siblings = next(counts[sampled] for least, counts in _STEPS if line[row] > least)
                siblings = min(siblings, order[depth].shape[1])
                first = len(above)
                above += [last] * siblings
                own += [(depth, rank) for rank in range(siblings)]
                last = first
            parents.append(tuple(above))
            pick.append(own)
        width = max(map(len, pick))
        at = torch.tensor([[*own, *[(0, 0)] * (width - len(own))] for own in pick], device=order[0].device)
        row_index = torch.arange(len(pick), device=at.device)[:, None]
        token = torch.stack(order, 1)[row_index, at[..., 0], at[..., 1]]
        share = None if shares is None else torch.stack(shares, 1)
        return Tree(token, tuple(parents), share, at[..., 0], passes=passes)

    def _next(self, context: Context, token: Tensor, depth: int) -> Reading:
        """One token of each row, behind the text and ``depth - 1`` drafted ones."""
        target = context.target
        place = torch.tensor(target.known, device=target.device)[:, None] + depth
        extent = max(target.known) + depth + 1
        alone = len(target.known) == 1
        keys = None if alone else torch.arange(extent, device=target.device) <= place[:, :, None]
        return Reading(token, place, place, keys, extent)

    def _improve(self, context: Context, state: Search) -> int:
        """Try another set of sublayers, if it is time; how many passes that took."""
        state.rounds += 1
        enough = min(map(len, context.texts)) > self.window
        if not self.interval or state.rounds % self.interval or state.over or not enough:
            return 0
        if state.score < 0:
            state.score = self._match(context, state.sublayers(state.skip))
        chosen = state.proposed()
        state.told(chosen, self._match(context, state.sublayers(chosen)))
        return 1

    def _match(self, context: Context, skip: frozenset[Sublayer]) -> float:
        """The share of the last tokens that the model predicts without some sublayers, in one pass behind the text."""
        target, size, device = context.target, self.window, context.count.device
        ids = torch.tensor([text[-size - 1 :] for text in context.texts], device=device)
        known = torch.tensor(target.known, device=device)[:, None]
        column = torch.arange(size, device=device)
        place, slot = known - size + column, known + column
        extent = max(target.known) + size
        stored = torch.arange(extent, device=device)
        keys = (stored < (known - size)[:, :, None]) | ((stored >= known[:, :, None]) & (stored <= slot[:, :, None]))
        hidden = target.draft(Reading(ids[:, :-1], place, slot, keys, extent), skip)
        found = target.network.logits(hidden.flatten(0, 1)).argmax(-1).view(len(ids), size)
        return float((found == ids[:, 1:]).double().mean())

    def learn(self, context: Context, accepted: Accepted, state: Search) -> None:
        """Nothing: matches are found out in :meth:`propose`, once the text is in the memory."""


def _noise(context: Context, depth: int, vocab: int) -> Tensor:
    """``[B, V]`` Gumbel noise; 0 where a row is greedy."""
    sampling = context.sampling
    made = gumbel(sampling.seed, context.place + depth, moment(context.count, DRAFT), vocab)
    return torch.where((sampling.temperature > 0)[:, None], made, 0.0)
