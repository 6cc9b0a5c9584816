"""Chimera (arXiv 2402.15758): a small network drafts from the target's hidden states and from the last three tokens."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.config import param
from ...core.errors import ModelError
from ...core.nets import Shape, fit, load
from ...core.predict import gumbel
from ...models.attention import rotate
from ...models.rope import rotary_table
from ..accept import DRAFT, distribution, moment
from ..drafter import Accepted, Context, Drafter
from ..target import Target
from ..tree import ROOT, Tree

BUNDLED = Path(__file__).parents[2] / "assets" / "drafters" / "chimera.safetensors"
HEAD = 20  # size of an attention head
HITS = (0.7, 0.12, 0.05, 0.03, 0.02, 0.015, 0.01, 0.01)
"""How often the first, second, ... candidate of the bundled weights is the target's token."""
Weights = dict[str, Tensor]


def shapes(heads: int) -> dict[str, Shape]:
    """Of the weights: the target is ``C`` wide, the drafter ``D``, three of its tokens ``E``, an output and a trigram
    ``Z``, its feed-forward layer ``F``.
    """
    return {
        "token": ("D", "C"), "hidden": ("D", "C"), "mix": ("E", "E"), "trigram": ("D", "E"),
        "qkv": ("Q", "D"), "o": ("D", "D"), "up": ("G", "D"), "down": ("D", "F"),
        "inner": (heads, "Z", "Z"), "outer": (heads, "C", "Z"),
    }  # fmt: skip


def rotary_of(target: Target) -> Tensor:
    """The table of rotary embeddings ``[positions, 2, HEAD]`` for the drafter's layer."""
    arch, positions = target.network.arch, target.model.description.context + 1
    return rotary_table(positions, HEAD, arch.theta, None, target.device)


def normal(x: Tensor) -> Tensor:
    """Root mean square 1."""
    return F.rms_norm(x, x.shape[-1:])


def trigram(weights: Weights, embedded: Tensor) -> Tensor:
    """``[..., D]`` of three embedded tokens ``[..., 3, C]``: the trigram encoder, a residual block and a projection."""
    x = F.linear(normal(embedded), weights["token"]).flatten(-2)
    x = x + F.silu(F.linear(x, weights["mix"]))
    return F.linear(x, weights["trigram"])


def of_target(weights: Weights, hidden: Tensor) -> Tensor:
    """``[..., D]`` of the target's last hidden states ``[..., C]``."""
    return F.linear(normal(hidden), weights["hidden"])


def projected(weights: Weights, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, ``[B, Q, H, HEAD]``, of ``x [B, Q, D]`` at places with these rows of the
    rotary table ``[B or 1, Q, 2, HEAD]``.
    """
    q, k, v = F.linear(normal(x), weights["qkv"]).view(*x.shape[:-1], 3, -1, HEAD).unbind(-3)
    return rotate(q, rotary), rotate(k, rotary), v


def full_context(weights: Weights, x: Tensor, query: Tensor, key: Tensor, value: Tensor, keys: Tensor) -> Tensor:
    """The full-context encoder, one decoder layer: ``[B, Q, D]`` of trigrams ``x``, which attend to ``keys [B or 1, Q,
    S]`` of ``key`` and ``value [B, S, H, HEAD]``.
    """
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None]).transpose(1, 2).flatten(2)
    x = x + F.linear(out, weights["o"])
    gate, up = F.linear(normal(x), weights["up"]).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, weights["down"])


def feature(weights: Weights, head: int, context: Tensor, gram: Tensor) -> Tensor:
    """``[..., C]`` what a decoding head makes of a layer's output and a trigram ``[..., D]``: what the target's own
    hidden state is likely to be, for its final norm and head.
    """
    z = torch.cat([context, gram], -1)
    z = z + F.silu(F.linear(z, weights["inner"][head]))
    return F.linear(z, weights["outer"][head])


@dataclass(frozen=True)
class Topology:
    """A tree of a fixed shape.

    Attributes:
        parents: of each node, level by level.
        levels: of each the place above that each of its nodes hangs at (counted among the places that have children),
            its rank among the candidates there, and which of its nodes have children themselves.
        sources: of each node the number of its place above, among all places that have children.
    """

    parents: tuple[int, ...]
    levels: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]
    sources: tuple[int, ...]


@lru_cache(maxsize=64)
def topology(size: int, depth: int, wide: int = len(HITS)) -> Topology:
    """The tree of ``size`` nodes, at most ``depth`` deep, that holds the right tokens most often if the r-th candidate
    is right with the probability ``HITS[r]`` at every place; so many candidates at most.
    """
    paths: list[tuple[int, ...]] = []
    heap: list[tuple[float, tuple[int, ...]]] = [(-HITS[0], (0,))]
    while heap and len(paths) < size:
        chance, path = heapq.heappop(heap)
        paths.append(path)
        if path[-1] + 1 < min(wide, len(HITS)):
            heapq.heappush(heap, (chance / HITS[path[-1]] * HITS[path[-1] + 1], (*path[:-1], path[-1] + 1)))
        if len(path) < depth:
            heapq.heappush(heap, (chance * HITS[0], (*path, 0)))
    paths.sort(key=lambda path: (len(path), path))
    number = {path: i for i, path in enumerate(paths)} | {(): ROOT}
    places = [(), *(path for path in paths if (*path, 0) in number)]
    levels = []
    for deep in range(1, len(paths[-1]) + 1):
        own = [path for path in paths if len(path) == deep]
        above = [place for place in places if len(place) == deep - 1]
        expanded = tuple(i for i, path in enumerate(own) if (*path, 0) in number)
        levels.append((tuple(above.index(path[:-1]) for path in own), tuple(path[-1] for path in own), expanded))
    sources = tuple(places.index(path[:-1]) for path in paths)
    return Topology(tuple(number[path[:-1]] for path in paths), tuple(levels), sources)


@dataclass
class Read:
    """Keys and values ``[B, S, H, HEAD]`` of the target's hidden states, by position of the text."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Chimera(Drafter):
    """A trigram encoder, one layer over the target's hidden states, and a head for each drafted position.

    The encoder reads each drafted token with the two before it; the layer attends from there to the hidden states that
    the target has computed for the text and to the drafted trigrams; head i predicts the i-th drafted token from both.
    Candidates form a tree of a fixed shape. The paper's heads begin as copies of the target's head; here they end in
    that head itself, so that the weights take 1 MB. Recipe: ``recipes/speculate/chimera.py``.
    """

    name = "chimera"
    paper = "arXiv 2402.15758"
    trained = True
    wants = "weights trained for the target"

    size: int = param(5, "nodes of the tree; as many as its depth: a chain", ge=1, le=128)
    depth: int = param(5, "longest chain in the tree; at most as many as the weights have heads", ge=1, le=16)
    weights: str | None = param(
        None, "file with the trained weights; none: those for the bundled causal model", file=True
    )

    @property
    def nodes(self) -> int:
        return self.size

    @cached_property
    def _read(self) -> dict[tuple[torch.device, torch.dtype], Weights]:
        return {}

    def trained_for(self, target: Target) -> Weights:
        """The trained weights on the target's device, in its dtype; with a table of rotary embeddings."""
        kind = target.device, target.dtype
        if kind not in self._read:
            path = str(BUNDLED) if self.weights is None else self.weights
            self._read[kind] = {n: w.to(target.dtype) for n, w in load(self.name, path, target.device).items()}
        return self._read[kind]

    @cached_property
    def _tables(self) -> dict[Target, Tensor]:
        return {}

    def _rotary(self, target: Target, place: Tensor) -> Tensor:
        if target not in self._tables:
            self._tables[target] = rotary_of(target)
        return self._tables[target][place.clamp(max=len(self._tables[target]) - 1)]

    def check(self, target: Target) -> None:
        found = self.trained_for(target)
        heads = len(found["inner"]) if "inner" in found else 1
        sizes = fit(self.name, found, shapes(heads))
        width, wide = sizes["D"], sizes["C"]
        right = {"E": 3 * width, "Q": 3 * width, "Z": 2 * width, "G": 2 * sizes["F"]}
        if width % HEAD or any(sizes[name] != size for name, size in right.items()):
            raise ModelError(f"{self.name}: the weights do not fit together: {sizes}, expected {right}")
        if wide != target.network.arch.width:
            raise ModelError(
                f"{self.name}: the weights are for a model of width {wide}, the target has {target.network.arch.width}"
            )
        if self.depth > heads:
            raise ModelError(f"{self.name}: depth={self.depth}, but the weights have {heads} heads; give at most that")

    def begin(self, context: Context) -> Read:
        heads = len(self.trained_for(context.target)["o"]) // HEAD
        like = context.target.memory.key[0]
        room = context.longest + self.size + 1
        return Read(*(like.new_zeros(len(context.texts), room, heads, HEAD) for _ in range(2)))

    def propose(self, context: Context, state: Read) -> Tree | None:
        target, sampling, device = context.target, context.sampling, context.count.device
        if any(len(text) - known != 1 for text, known in zip(context.texts, target.known, strict=True)):
            return None  # the target reads the prompt first
        shape = topology(self.size, min(self.depth, context.room), target.model.vocab)
        rows, place, network, weights = len(context.texts), context.place, target.network, self.trained_for(target)
        lead = [[text[0], text[0], *text][-3:] for text in context.texts]
        grams = torch.tensor(lead, device=device)[:, None]  # [B, n, 3] of the places of a level
        stored = torch.arange(state.key.shape[1], device=device) < place[:, None] - 1
        keys, values, above = [state.key], [state.value], torch.ones(1, 1, dtype=torch.bool, device=device)
        token, shares = list[Tensor](), list[Tensor]()
        for level, (parents, ranks, expanded) in enumerate(shape.levels):
            gram = trigram(weights, network.embed(grams))
            query, key, value = projected(weights, gram, self._rotary(target, place[:, None] - 1 + level))
            keys.append(key)
            values.append(value)
            seen = torch.cat([stored[:, None].expand(-1, grams.shape[1], -1), above.expand(rows, -1, -1)], 2)
            out = full_context(weights, gram, query, torch.cat(keys, 1), torch.cat(values, 1), seen)
            logits = network.logits(feature(weights, level, out, gram).flatten(0, 1))
            order = self._candidates(context, logits, level, max(ranks) + 1, shares)
            at, rank = (torch.tensor(part, device=device) for part in (parents, ranks))
            token.append(order[:, at, rank])
            kept = torch.tensor(expanded, device=device, dtype=torch.long)
            grams = torch.cat([grams[:, at[kept], 1:], token[-1][:, kept, None]], 2)
            own = torch.eye(len(expanded), dtype=torch.bool, device=device)
            above = torch.cat([above[at[kept]], own], 1)
        share = torch.cat(shares, 1) if sampling.samples else None
        source = torch.tensor(shape.sources, device=device).expand(rows, -1)
        return Tree(torch.cat(token, 1), (shape.parents,) * rows, share, source, passes=len(shape.levels))

    @staticmethod
    def _candidates(context: Context, logits: Tensor, level: int, count: int, shares: list[Tensor]) -> Tensor:
        """``[B, n, count]`` tokens for the children of each place of a level, from ``logits [B * n, V]``; when sampling
        drawn without replacement from what is added to ``shares``.
        """
        sampling, rows = context.sampling, len(context.texts)
        many = len(logits) // rows
        if not sampling.samples:
            return logits.topk(count, -1).indices.view(rows, many, count)
        row = torch.arange(rows, device=logits.device).repeat_interleave(many)
        share = distribution(logits, sampling, row)
        width = logits.shape[1]
        noise = gumbel(sampling.seed, context.place + level, moment(context.count, DRAFT), many * width)
        noise = torch.where((sampling.temperature > 0)[:, None], noise, 0.0).view(rows * many, width)
        shares.append(share.view(rows, many, width))
        return (share.log() + noise).topk(count, -1).indices.view(rows, many, count)

    def learn(self, context: Context, accepted: Accepted, state: Read) -> None:
        hidden, waiting = accepted.hidden, accepted.waiting
        device, column = hidden.device, hidden.shape[1] - accepted.tree.size
        paths = [[*range(count), *(column + node for node in nodes)]
                 for count, nodes in zip(waiting, accepted.nodes, strict=True)]  # fmt: skip
        longest, end = max(map(len, paths)), state.key.shape[1] - 1
        starts = [len(text) - count for text, count in zip(context.texts, waiting, strict=True)]
        at = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=device)
        goal = [
            [*range(s, s + len(path)), *[end] * (longest - len(path))] for s, path in zip(starts, paths, strict=True)
        ]
        place, row = torch.tensor(goal, device=device), torch.arange(len(paths), device=device)[:, None]
        weights = self.trained_for(context.target)
        x = of_target(weights, hidden[row, at])
        _, key, value = projected(weights, x, self._rotary(context.target, place))
        state.key[row, place], state.value[row, place] = key, value

    def keep(self, state: Read, rows: Sequence[int]) -> Read:
        return Read(state.key[list(rows)], state.value[list(rows)])
