"""Token trees: what a drafter proposes for every row of a batch. A chain is a tree with one branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..models.slots import Lift

ROOT = -1
"""The parent of nodes that follow the text itself."""


@dataclass(frozen=True)
class Shape:
    """The topology of one row's tree, from the parent of each node.

    Attributes:
        depth: of each node; 1: it follows the text itself.
        first, next: of each place (the text's last token, then the nodes) its first child, and of each node the next
            one with the same parent, as node numbers; -1: none.
        chain: whether each node is the parent of the one after it.
        above: ``[N, N]`` which nodes (columns) lead to each node, itself included.
    """

    depth: tuple[int, ...]
    first: tuple[int, ...]
    next: tuple[int, ...]
    chain: bool
    above: Tensor


@lru_cache(maxsize=4096)
def shape_of(parents: tuple[int, ...]) -> Shape:
    """The topology of a tree; parents come before their children.

    Raises:
        ValueError: a parent that is no earlier node.
    """
    count = len(parents)
    above = torch.eye(count, dtype=torch.bool)
    depth, first, following, last = [0] * count, [ROOT] * (count + 1), [ROOT] * count, [ROOT] * (count + 1)
    for node, parent in enumerate(parents):
        if not ROOT <= parent < node:
            raise ValueError(f"node {node} has the parent {parent}; accepted are {ROOT} to {node - 1}")
        depth[node] = 1 if parent == ROOT else depth[parent] + 1
        if parent != ROOT:
            above[node] |= above[parent]
        place = parent + 1
        if last[place] == ROOT:
            first[place] = node
        else:
            following[last[place]] = node
        last[place] = node
    chain = all(parent == node - 1 for node, parent in enumerate(parents))
    return Shape(tuple(depth), tuple(first), tuple(following), chain, above)


@dataclass(frozen=True)
class Tree:
    """Drafted tokens of every row, ``N`` nodes at most.

    Attributes:
        token: ``[B, N]`` ids; of rows with fewer nodes the rest means nothing.
        parents: of each row the parent of each node, an earlier one, or :data:`ROOT`. Siblings are tried in order.
        share: ``[B, K, V]`` float64, distributions that tokens were drawn from. None: no token was drawn, each is
            certain.
        source: ``[B, N]`` the distribution in ``share`` that each token was drawn from; siblings are drawn from one of
            them, without replacement. It must not depend on tokens that stand behind the node.
        probe: of each row the nodes that are no candidates: the target predicts behind them, for the drafter alone.
        passes: forward passes of a drafter's network that it took.
        lift: makes, of the places ``[B, Q]`` of a reading that are probes, what changes their hidden states.
    """

    token: Tensor
    parents: tuple[tuple[int, ...], ...]
    share: Tensor | None = None
    source: Tensor | None = None
    probe: tuple[frozenset[int], ...] | None = None
    passes: int = 0
    lift: Callable[[Tensor], Lift] | None = None

    @staticmethod
    def of(
        tokens: Sequence[Sequence[int]], parents: Sequence[Sequence[int]] | None, device: torch.device, passes: int = 0
    ) -> Tree:
        """Certain tokens, from the host; ``parents`` None: chains."""
        width = max(map(len, tokens))
        token = torch.zeros(len(tokens), width, dtype=torch.long)
        for row, own in enumerate(tokens):
            token[row, : len(own)] = torch.tensor(own, dtype=torch.long)
        above = [range(-1, len(own) - 1) for own in tokens] if parents is None else parents
        return Tree(token.to(device), tuple(map(tuple, above)), passes=passes)

    @property
    def size(self) -> int:
        """N."""
        return self.token.shape[1]

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Of each row."""
        return tuple(map(shape_of, self.parents))

    @cached_property
    def chain(self) -> bool:
        """Whether all rows have chains."""
        return all(shape.chain for shape in self.shapes)

    @cached_property
    def depth(self) -> Tensor:
        """``[B, N]`` of each node; 0 where a row has none."""
        return self._padded([shape.depth for shape in self.shapes], 0)

    @cached_property
    def real(self) -> Tensor:
        """``[B, N]`` the nodes that there are."""
        return self.depth > 0

    @cached_property
    def above(self) -> Tensor:
        """``[B, N, N]`` which nodes (last dimension) lead to each node, itself included."""
        made = torch.zeros(len(self.parents), self.size, self.size, dtype=torch.bool)
        for row, shape in enumerate(self.shapes):
            count = len(shape.depth)
            made[row, :count, :count] = shape.above
        return made.to(self.token.device)

    @cached_property
    def silent(self) -> Tensor:
        """``[B, N]`` the nodes that are probes."""
        flags = torch.zeros(len(self.parents), self.size, dtype=torch.bool)
        for row, own in enumerate(self.probe or ()):
            flags[row, list(own)] = True
        return flags.to(self.token.device)

    def path(self, row: int, node: int) -> list[int]:
        """The nodes that lead to one, itself included; none for :data:`ROOT`."""
        found: list[int] = []
        while node != ROOT:
            found.append(node)
            node = self.parents[row][node]
        return found[::-1]

    def _padded(self, values: Sequence[Sequence[int]], fill: int) -> Tensor:
        rows = [[*own, *[fill] * (self.size - len(own))] for own in values]
        return torch.tensor(rows, dtype=torch.long, device=self.token.device).view(len(rows), self.size)
