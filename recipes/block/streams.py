"""Which position sees which: the three kinds of visibility, each as one sequence with clean and masked entries.

A sequence has *content* entries (tokens as they are) and *query* entries (mostly mask tokens, whose prediction is
wanted). Content of rank r sees content of rank r or less. A query sees content up to its ``limit`` and the queries of
its own ``group``. With that, one forward pass trains every block, or every place of an order, at the same time:

- **full**: queries and content are one group; there are no ranks. This is LLaDA's own training.
- **block**: the rank of a token is its block. The masked copy of a block is a group whose limit is the block before.
- **order**: rank 0 for all that is given (the prompt, and some of the response), then 1, 2, ... from left to right. A
  query stands at a place that is not given and is a group of its own. Its limit is the rank before its own
  (the oracle of ASSD), or the rank before a run of places that are predicted at once (its drafts).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from data import EOS_WEIGHT, LENGTHS, Batches, Ids
from torch import Tensor

KINDS = ("full", "block", "order")
SHARES = {"full": 0.2, "block": 0.45, "order": 0.35}
STEP = 16  # sequences of one batch are padded to a multiple of this
DRAFTS = 8  # longest run of places that are predicted at once


@dataclass(frozen=True)
class Stream:
    """One sequence: ``[T]`` token ids, places in the text, ranks, limits, groups, targets and weights of the loss.

    ``rank`` is -1 for a query. The ``group`` of content is its own, negative number.
    """

    ids: np.ndarray
    position: np.ndarray
    rank: np.ndarray
    limit: np.ndarray
    group: np.ndarray
    target: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """What a step learns from; iterates as the tensors that :meth:`train.Run.train_step` takes."""

    kind: str
    tensors: tuple[Tensor, ...] = field(repr=False)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)


def visible(rank: Tensor, limit: Tensor, group: Tensor) -> Tensor:
    """``[..., T, T]``: whether a query (last but one) sees a key (last)."""
    content = (rank >= 0)[..., None, :] & (rank[..., None, :] <= limit[..., :, None])
    return content | (group[..., None, :] == group[..., :, None])


def joined(text: np.ndarray, content: np.ndarray, rank: np.ndarray, queries: Stream) -> Stream:
    """Clean entries at the places ``content``, of ranks ``rank``, and the queries behind them."""
    own = -1 - np.arange(len(content))
    return Stream(
        *(
            np.concatenate(pair)
            for pair in (
                (text[content], queries.ids),
                (content, queries.position),
                (rank, queries.rank),
                (rank, queries.limit),
                (own, queries.group),
                (text[content], queries.target),
                (np.zeros(len(content)), queries.weight),
            )
        )
    )


def block_stream(text: np.ndarray, start: int, masked: np.ndarray, weight: np.ndarray, length: int, ids: Ids) -> Stream:
    """A text whose response begins at ``start``, block by block of ``length`` counted from place 0.

    Args:
        text: ``[T]`` prompt and response.
        start: where the response begins; what the prompt leaves over opens the first block of queries.
        masked: ``[T]`` what its own block does not know yet.
        weight: ``[T]`` of the loss, where masked.
        length: positions of a block.
        ids: for the mask token.
    """
    places = np.arange(len(text))
    block = places // length
    content, query = places[block < block[-1]], places[start // length * length :]
    hidden = masked[query]
    queries = Stream(
        ids=np.where(hidden, ids.mask, text[query]),
        position=query,
        rank=np.full(len(query), -1),
        limit=block[query] - 1,
        group=block[query],
        target=text[query],
        weight=np.where(hidden, weight[query], 0.0),
    )
    return joined(text, content, block[content], queries)


def order_stream(text: np.ndarray, given: np.ndarray, ahead: np.ndarray, weight: np.ndarray, ids: Ids) -> Stream:
    """A text of which some places are ``given [T]``; the others follow from left to right.

    ``ahead [N]``: for each place that is not given, how many of those before it are unknown beside those that it must
    not see anyway (0: it sees all that come before it).
    """
    places = np.arange(len(text))
    rank = np.where(given, 0, np.cumsum(~given))
    query = places[~given]
    content = places[rank < rank.max()]
    queries = Stream(
        ids=np.full(len(query), ids.mask),
        position=query,
        rank=np.full(len(query), -1),
        limit=rank[query] - 1 - ahead,
        group=query,
        target=text[query],
        weight=weight[query],
    )
    return joined(text, content, rank[content], queries)


def stacked(streams: list[Stream]) -> tuple[Tensor, ...]:
    """Ids, targets, weights, visibility and places, padded at the end by entries that see themselves only."""
    width = -(-max(map(len, streams)) // STEP) * STEP
    rows: dict[str, np.ndarray] = {}
    for name in ("ids", "target", "position", "rank", "limit", "group", "weight"):
        rows[name] = np.zeros((len(streams), width), dtype=np.float32 if name == "weight" else np.int64)
    rows["rank"][:], rows["limit"][:] = -1, -1
    rows["group"][:] = -1 - width - np.arange(width)
    for i, stream in enumerate(streams):
        for name, values in rows.items():
            values[i, : len(stream)] = getattr(stream, name)
    t = {name: torch.from_numpy(values) for name, values in rows.items()}
    return t["ids"], t["target"], t["weight"], visible(t["rank"], t["limit"], t["group"]), t["position"]


class Streams(Batches):
    """An endless stream of batches, each of one kind of visibility.

    ``mix`` may hold shares of the kinds beside those of the sources.
    """

    block = 16

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        full: dict[int, list[tuple[list[int], list[int]]]] = {length: [] for length in LENGTHS}
        waiting: dict[tuple[str, int], list[Stream]] = {}
        while True:
            prompt, answer = self._problem()
            shares = [self.mix.get(kind, SHARES[kind]) for kind in KINDS]
            kind = self.rng.choices(KINDS, shares)[0]
            if prompt == self.bare:
                kind = "full"
            if kind == "full":
                length = self._length(len(prompt) + len(answer) + 2)
                queue = full[length]
                queue.append((prompt, answer))
                if len(queue) * length >= self.tokens:
                    yield Batch(kind, self._build(queue, length))
                    queue.clear()
                continue
            stream = self._block(prompt, answer) if kind == "block" else self._order(prompt, answer)
            streams = waiting.setdefault((kind, -(-len(stream) // STEP)), [])
            streams.append(stream)
            if len(streams) * STEP * -(-len(stream) // STEP) >= self.tokens:
                yield Batch(kind, stacked(streams))
                streams.clear()

    def _text(self, prompt: list[int], answer: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompt, answer and end tokens up to ``length``; and the weight of each place."""
        end = len(prompt) + len(answer)
        text = np.full(length, self.ids.eos, dtype=np.int64)
        text[:end] = prompt + answer
        return text, np.where(np.arange(length) < end + 2, 1.0, EOS_WEIGHT)

    def _block(self, prompt: list[int], answer: list[int]) -> Stream:
        """Up to the end of the block in which the first end token stands, each block masked on its own."""
        start, end = len(prompt), len(prompt) + len(answer) + 1
        length = -(-end // self.block) * self.block
        if self.rng.random() < 0.05:  # a response that may not be longer
            length = self.rng.randint(end, length)
        text, weight = self._text(prompt, answer, length)
        masked = np.zeros(length, dtype=bool)
        for lower in range(start // self.block * self.block, length, self.block):
            part = slice(max(lower, start), min(lower + self.block, length))
            masked[part] = self._in_block(part.stop - part.start)
        return block_stream(text, start, masked, weight, self.block, self.ids)

    def _in_block(self, size: int) -> np.ndarray:
        """Which places of a block are masked: any number of them, at random or more of them to the right."""
        if size < 1:
            return np.zeros(0, dtype=bool)
        count = self.rng.randint(1, size)
        if self.rng.random() < 0.15:
            count = size
        score = self.noise.random(size)
        if self.rng.random() < 0.5:
            score = score + self.rng.uniform(0, 2) * np.arange(size) / size
        masked = np.zeros(size, dtype=bool)
        masked[np.argsort(-score)[:count]] = True
        return masked

    def _order(self, prompt: list[int], answer: list[int]) -> Stream:
        """Half of the texts from left to right, half with gaps to fill; one place at a time or several."""
        text, weight = self._text(prompt, answer, len(prompt) + len(answer) + 2)
        given = np.arange(len(text)) < len(prompt)
        if self.rng.random() < 0.4:
            given |= self.noise.random(len(text)) < self.noise.random() * 0.9
            if given.all():
                given[self.rng.randint(len(prompt), len(text) - 1)] = False
        count = int((~given).sum())
        if self.rng.random() < 0.5:
            return order_stream(text, given, np.zeros(count, dtype=np.int64), weight, self.ids)
        ahead = np.zeros(count, dtype=np.int64)
        at = 0
        while at < count:
            run = min(self.rng.randint(1, DRAFTS), count - at)
            ahead[at : at + run] = np.arange(run)
            at += run
        return order_stream(text, given, ahead, weight, self.ids)
