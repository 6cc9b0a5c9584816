"""ADED (arXiv 2407.12021): a table of trigrams, searched by Monte Carlo tree search, which learns from the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...core.config import param
from ...core.errors import ModelError, RequestError
from ...text import Text
from ..drafter import Accepted, Context, Drafter
from ..target import Target
from ..tree import ROOT, Tree

_BASE, _SLOPE = 1.25, 19652  # of the exploration's weight, as in MuZero
Pair = tuple[int, int]


@dataclass
class Trigrams:
    """Of pairs of tokens the weights of at most ``most`` tokens that follow them."""

    most: int
    after: dict[Pair, dict[int, float]] = field(default_factory=dict)

    def add(self, text: Sequence[int], begin: int = 2, weight: float = 1.0) -> None:
        """Count the trigrams that end at ``begin`` or behind it."""
        for end in range(max(2, begin), len(text)):
            held = self.after.setdefault((text[end - 2], text[end - 1]), {})
            held[text[end]] = held.get(text[end], 0.0) + weight
            if len(held) > self.most:
                del held[min(held, key=held.__getitem__)]

    def fade(self, pair: Pair, by: float) -> None:
        """Let what followed a pair so far count less."""
        held = self.after.get(pair)
        for token in held or ():
            held[token] *= by  # type: ignore[index]

    def share(self, pair: Pair) -> list[tuple[int, float]]:
        """Tokens behind a pair and their probabilities, the likeliest first."""
        held = self.after.get(pair, {})
        total = sum(held.values())
        return sorted(((token, weight / total) for token, weight in held.items()), key=lambda item: -item[1])


@dataclass
class Node:
    """A node of the search: its token, prior, path probability and statistics."""

    token: int
    prior: float
    value: float
    depth: int
    visits: int = 0
    total: float = 0.0
    children: list[Node] | None = None

    @property
    def mean(self) -> float:
        """Q, the mean value of the searches through it."""
        return self.total / self.visits if self.visits else 0.0


@dataclass(frozen=True)
class Aded(Drafter):
    """Follows a table of trigrams and proposes the paths that a Monte Carlo tree search visits most, as one tree.

    A search goes from the last two tokens to the child with the largest Q + E P sqrt(n) / (1 + m) (PUCT), P being the
    trigram's probability, n and m the visits of parent and child, Q the mean value of the child: the product of the
    probabilities on its way. The table begins with ``corpus`` and the prompts and learns from every token generated:
    what followed a pair before counts ``fade`` times as much then. It goes on from request to request.
    """

    name = "aded"
    paper = "arXiv 2407.12021"
    wants = "nothing; a corpus helps"

    size: int = param(16, "nodes of the tree", ge=1, le=256)
    depth: int = param(8, "most tokens in a row", ge=1, le=64)
    searches: int = param(64, "paths searched in a round", ge=1, le=4096)
    most: int = param(12, "tokens held behind a pair", ge=1, le=256)
    fade: float = param(0.9, "factor of what a pair's table held before a generated token is added", gt=0, le=1)
    corpus: str | None = param(None, "text file that the table begins with, one text a line; none: empty", file=True)

    @property
    def nodes(self) -> int:
        return self.size

    @cached_property
    def _tables(self) -> dict[Target, Trigrams]:
        return {}

    def table(self, target: Target) -> Trigrams:
        """The table for a target; lives as long as the drafter."""
        if target not in self._tables:
            made = Trigrams(self.most)
            for text in self._lines(target) if self.corpus is not None else ():
                made.add(text)
            self._tables[target] = made
        return self._tables[target]

    def check(self, target: Target) -> None:
        self.table(target)

    def _lines(self, target: Target) -> list[list[int]]:
        text = Text.find(target.model.folder)
        if text is None:
            raise ModelError(f"{self.name}: corpus needs a tokenizer, and {target.model.folder} has no tokenizer.json")
        try:
            lines = Path(str(self.corpus)).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{self.name}: cannot read corpus {self.corpus}: {error}") from None
        return [text.plain(line.replace("\\n", "\n")) for line in lines if line.strip()]

    def begin(self, context: Context) -> Trigrams:
        table = self.table(context.target)
        for text in context.texts:
            table.add(text)
        return table

    def propose(self, context: Context, state: Trigrams) -> Tree | None:
        depth = min(self.depth, context.room)
        found = [self._searched(state, text, depth, context.ends) for text in context.texts]
        if not any(tokens for tokens, _ in found):
            return None
        return Tree.of([tokens for tokens, _ in found], [parents for _, parents in found], context.count.device)

    def _searched(
        self, table: Trigrams, text: Sequence[int], depth: int, ends: frozenset[int]
    ) -> tuple[list[int], list[int]]:
        """The nodes visited most: tokens and parents."""
        if len(text) < 2:
            return [], []
        root = Node(text[-1], 1.0, 1.0, 0)
        for _ in range(self.searches):
            _descend(root, text[-2], table, depth, ends)
        tokens: list[int] = []
        parents: list[int] = []
        front = [(child, ROOT) for child in root.children or () if child.visits]
        while front and len(tokens) < self.size:
            best = max(range(len(front)), key=lambda i: (front[i][0].visits, front[i][0].value))
            node, parent = front.pop(best)
            tokens.append(node.token)
            parents.append(parent)
            front += [(child, len(tokens) - 1) for child in node.children or () if child.visits]
        return tokens, parents

    def learn(self, context: Context, accepted: Accepted, state: Trigrams) -> None:
        for text, news in zip(context.texts, accepted.tokens, strict=True):
            whole = [*text[-2:], *news]
            for end in range(2, len(whole)):
                state.fade((whole[end - 2], whole[end - 1]), self.fade)
            state.add(whole)


def _descend(root: Node, before: int, table: Trigrams, depth: int, ends: frozenset[int]) -> None:
    """One search: to a node that was not visited, and its value back to all above it."""
    path, last = [root], before
    while path[-1].depth < depth and path[-1].token not in ends:
        node = path[-1]
        if node.children is None:
            shares = table.share((last, node.token))
            node.children = [Node(token, p, node.value * p, node.depth + 1) for token, p in shares]
        if not node.children:
            break
        weight = (_BASE + math.log((node.visits + _SLOPE + 1) / _SLOPE)) * math.sqrt(max(1, node.visits))
        child = max(
            node.children, key=lambda c: (c.total / c.visits if c.visits else 0.0) + weight * c.prior / (1 + c.visits)
        )
        path.append(child)
        last = node.token
        if not child.visits:
            break
    for node in path:
        node.visits += 1
        node.total += path[-1].value
