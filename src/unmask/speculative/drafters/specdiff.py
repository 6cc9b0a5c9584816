"""SpecDiff (arXiv 2408.05636), SpecDiff-2 (arXiv 2511.00606): a masked diffusion model drafts for a causal target."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ...api import load
from ...core.canvas import NO_MASK
from ...core.config import param
from ...core.errors import SpecError
from ...core.predict import forbid, gumbel
from ...models.denoiser import Denoiser
from ...models.slots import Memory, Reading, read
from ..accept import DRAFT, distribution, moment
from ..drafter import Accepted, Context, Drafter
from ..target import Target
from ..tree import ROOT, Tree


@dataclass
class Window:
    """What the diffusion model has computed of the rows.

    Attributes:
        memory: keys and values by position; masked positions in front of the text's end are overwritten as it grows.
        read: of each row, how many tokens of the text are in it.
        filled: of each row, the position up to which there are masked positions in it.
    """

    memory: Memory
    read: list[int]
    filled: list[int]


@dataclass(frozen=True)
class SpecDiff(Drafter):
    """A masked diffusion model of the target's tokenizer fills a window of ``gamma`` masked positions as the draft.

    Its prompt and text are computed once; a pass computes the newly accepted tokens and the window, in front of
    ``context`` masked positions. With ``steps`` the window is filled from left to right in as many parts, each pass
    seeing the parts before: the distribution that a token is drawn from must not depend on what stands behind it, or
    the acceptance rule is not exact. With ``tree`` the draft is a token tree of that many nodes, the likeliest
    combinations of the ``branches`` best tokens per position (sampling: drawn without replacement), all of one pass.
    """

    name = "specdiff"
    paper = "arXiv 2408.05636, arXiv 2511.00606"
    wants = "a diffusion model of the same tokenizer"

    gamma: int = param(24, "masked positions of the window", ge=1, le=256)
    steps: int = param(1, "forward passes that fill the window; with a tree: 1", ge=1, le=64)
    tree: int = param(0, "nodes of the token tree; 0: a chain of gamma tokens", ge=0, le=512)
    branches: int = param(3, "candidates per position of a tree", ge=1, le=16)
    context: int = param(64, "masked positions that the model sees from the text's end on", ge=1)
    model: str | None = param(None, "folder or hub id of the diffusion model; none: the bundled one", file=True)

    @property
    def nodes(self) -> int:
        return self.tree or self.gamma

    @cached_property
    def _held(self) -> dict[tuple[torch.device, torch.dtype], Denoiser]:
        return {}

    def denoiser(self, target: Target) -> Denoiser:
        """The diffusion model, where and in what the target calculates; loaded once, freed with the drafter."""
        key = target.device, target.dtype
        if key not in self._held:
            name = str(target.dtype).removeprefix("torch.")
            self._held[key] = load(self.model, str(target.device), name, cuda_graphs="off").denoiser
        return self._held[key]

    def check(self, target: Target) -> None:
        spec = self.denoiser(target).spec
        target.model.fits(spec)
        if spec.mask == NO_MASK:
            raise SpecError(f"{self.name}: {self.model} has no mask token, by which drafts are asked for")
        if self.steps > 1 and self.tree:
            raise SpecError(f"{self.name}: a tree takes one pass, got steps={self.steps}; leave out steps or tree")

    def begin(self, context: Context) -> Window:
        target, rows = context.target, len(context.texts)
        arch, total = self.denoiser(target).network.arch, context.longest + self._ahead
        memory = Memory.empty(arch, rows, total, target.device, target.dtype)
        return Window(memory, [0] * rows, [0] * rows)

    @property
    def _ahead(self) -> int:
        return max(self.gamma, self.context)

    def propose(self, context: Context, state: Window) -> Tree | None:
        gamma = min(self.gamma, context.room)
        denoiser, vocab = self.denoiser(context.target), context.target.model.vocab
        parts = min(self.steps, gamma)
        bounds = [round(gamma * i / parts) for i in range(parts + 1)]
        row = torch.arange(len(context.texts), device=context.count.device)
        drawn: list[Tensor] = []
        shares: list[Tensor] = []
        noise = self._noise(context, gamma, vocab)
        for begin, end in pairwise(bounds):
            hidden = self._pass(context, state, drawn, gamma, end)
            logits = forbid(denoiser.network.logits(hidden[:, begin:end].flatten(0, 1)), denoiser.spec)
            logits = F.pad(logits, (0, max(0, vocab - logits.shape[1])), value=-torch.inf)[:, :vocab]
            sampling, each = context.sampling, row.repeat_interleave(end - begin)
            share = distribution(logits, sampling, each) if sampling.samples else logits.softmax(-1)
            shares.append(share.view(len(row), end - begin, vocab))
            if not self.tree:
                drawn.append(_drawn(shares[-1], noise[:, begin:end])[..., 0])
        share = torch.cat(shares, 1)
        if self.tree:
            return replace(self._branched(share, noise, context), passes=parts)
        parents = (tuple(range(-1, gamma - 1)),) * len(row)
        token = torch.cat(drawn, 1)
        source = torch.arange(gamma, device=token.device).expand_as(token)
        return Tree(token, parents, share if context.sampling.samples else None, source, passes=parts)

    def _noise(self, context: Context, gamma: int, vocab: int) -> Tensor:
        """``[B, gamma, V]`` Gumbel noise of the window; 0 where a row is greedy."""
        place, sampling = context.place, context.sampling
        if not sampling.samples:
            return torch.zeros(len(place), gamma, 1, device=place.device)
        at = (place[:, None] + torch.arange(gamma, device=place.device)).flatten()
        seed, count = (x.repeat_interleave(gamma) for x in (sampling.seed, moment(context.count, DRAFT)))
        made = gumbel(seed, at, count, vocab).view(len(place), gamma, vocab)
        return torch.where((sampling.temperature > 0)[:, None, None], made, 0.0)

    def _branched(self, share: Tensor, noise: Tensor, context: Context) -> Tree:
        """A tree of the best combinations, by probabilities that do not depend on which tokens are drawn."""
        batch = len(share)
        ranks = min(self.branches, share.shape[2])
        expected = share.topk(ranks, -1).values.tolist()
        shapes = [_best_first(tuple(tuple(line) for line in own), self.tree) for own in expected]
        order = _drawn(share, noise, ranks)
        width = max(len(parents) for parents, _, _ in shapes)
        depth, rank = (torch.zeros(batch, width, dtype=torch.long, device=share.device) for _ in range(2))
        for i, (_, depths, own) in enumerate(shapes):
            depth[i, : len(own)] = torch.tensor(depths, device=share.device)
            rank[i, : len(own)] = torch.tensor(own, device=share.device)
        token = order[torch.arange(batch, device=share.device)[:, None], depth, rank]
        parents = tuple(parents for parents, _, _ in shapes)
        if not context.sampling.samples:
            return Tree(token, parents)
        return Tree(token, parents, share, depth)

    def _pass(self, context: Context, state: Window, drawn: list[Tensor], gamma: int, end: int) -> Tensor:
        """Hidden states ``[B, gamma, C]`` that predict the window: computes the tokens that are new, what is ``drawn``
        of the window, its masked positions, and those behind it that the memory does not have.
        """
        denoiser, device = self.denoiser(context.target), context.count.device
        texts, spec, first = context.texts, denoiser.spec, not drawn
        new = (
            [text[at:] for text, at in zip(texts, state.read, strict=True)] if first else [text[-1:] for text in texts]
        )
        fresh = max((max(0, len(t) + gamma - f) for t, f in zip(texts, state.filled, strict=True)), default=0)
        wide = self._ahead if first and fresh else gamma
        width = max(map(len, new))
        size = torch.tensor([len(text) for text in texts], device=device)
        known = torch.tensor([len(own) for own in new], device=device)
        column = torch.arange(width, device=device)
        place = (size - known)[:, None] + column
        bin_ = state.memory.key[0].shape[1] - 1
        slot = torch.where(column < known[:, None], place, bin_)
        ids = torch.tensor([[*own, *[0] * (width - len(own))] for own in new], device=device)
        ahead = size[:, None] + torch.arange(wide, device=device)
        masks = torch.full_like(ahead, spec.mask)
        if drawn:
            filled = torch.cat(drawn, 1)
            masks[:, : filled.shape[1]] = filled
        if first:
            state.read = [len(text) for text in texts]
            state.filled = [max(f, len(t) + wide) for f, t in zip(state.filled, texts, strict=True)]
        reach = torch.tensor(state.filled, device=device).clamp(max=bin_)
        extent = max(state.filled)
        keys = (torch.arange(extent, device=device) < reach[:, None])[:, None].expand(-1, width + wide, -1)
        reading = Reading(
            torch.cat([ids, masks], 1), torch.cat([place, ahead], 1), torch.cat([slot, ahead], 1), keys, extent
        )
        hidden = read(denoiser.network, reading, state.memory)
        last = hidden[torch.arange(len(texts), device=device), known - 1][:, None]
        window = hidden[:, width : width + gamma]
        return torch.cat([last, window[:, :-1]], 1) if spec.shift else window

    def learn(self, context: Context, accepted: Accepted, state: Window) -> None:
        """Nothing: new tokens are read with the next window."""

    def keep(self, state: Window, rows: Sequence[int]) -> Window:
        index = torch.tensor(list(rows), device=state.memory.known.device)
        return Window(state.memory.rows(index), [state.read[i] for i in rows], [state.filled[i] for i in rows])


def _drawn(share: Tensor, noise: Tensor, count: int = 1) -> Tensor:
    """``[B, G, count]`` tokens drawn without replacement from ``share [B, G, V]``, by Gumbel noise; the likeliest ones
    where that is 0.
    """
    return (share.log() + noise).topk(count, -1).indices


@lru_cache(maxsize=256)
def _best_first(
    expected: tuple[tuple[float, ...], ...], size: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The tree of at most ``size`` nodes with the largest sum of products of ``expected[depth][rank]`` along its paths:
    the parent, depth and rank of each node.
    """
    heap = [(-expected[0][0], 0, ROOT, 0, 0)]  # score, order, parent, depth, rank
    parents: list[int] = []
    depths: list[int] = []
    ranks: list[int] = []
    order = 1
    while heap and len(parents) < size:
        score, _, parent, depth, rank = heapq.heappop(heap)
        node = len(parents)
        parents.append(parent)
        depths.append(depth)
        ranks.append(rank)
        own = expected[depth][rank]
        if rank + 1 < len(expected[depth]) and own > 0:
            heapq.heappush(heap, (score / own * expected[depth][rank + 1], order, parent, depth, rank + 1))
        if depth + 1 < len(expected):
            heapq.heappush(heap, (score * expected[depth + 1][0], order + 1, node, depth + 1, 0))
        order += 2
    return tuple(parents), tuple(depths), tuple(ranks)
