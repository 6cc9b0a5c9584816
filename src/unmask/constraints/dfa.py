"""From a tree to a deterministic automaton over bytes of UTF-8, of a bounded number of states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from .syntax import Alt, Both, Cat, Chars, Node

STATES = 20_000  # most states of a deterministic automaton over bytes
_PARTS = 400_000  # most states before it is made deterministic
Ints = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Bytes:
    """A minimal automaton over bytes; state 0 is where it starts.

    Attributes:
        table: ``[S, 256]`` the next state; -1: no accepted text goes on so.
        accept: ``[S]``.
    """

    table: Ints
    accept: NDArray[np.bool_]

    @property
    def empty(self) -> bool:
        """Whether it accepts no text."""
        return not len(self.table)


def automaton(node: Node) -> Bytes:
    """The automaton of a tree.

    Raises:
        RequestError: more than ``STATES`` states.
    """
    nfa = _Nfa()
    last = nfa.build(node, nfa.new())
    return _minimal(*_determined(nfa, last))


class _Nfa:
    """States with moves on ranges of bytes and moves on nothing (Thompson's construction)."""

    def __init__(self) -> None:
        self.moves: list[list[tuple[int, int, int]]] = []
        self.free: list[list[int]] = []

    def new(self) -> int:
        if len(self.moves) >= _PARTS:
            raise RequestError(f"the constraint is too large: more than {_PARTS} parts, repeats written out")
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1

    def build(self, node: Node, at: int) -> int:
        """Add a tree behind a state; returns where it ends."""
        if isinstance(node, Chars):
            end = self.new()
            for low, high in node.ranges:
                for parts in utf8(low, high):
                    place = at
                    for a, b in parts[:-1]:
                        step = self.new()
                        self.moves[place].append((a, b, step))
                        place = step
                    self.moves[place].append((*parts[-1], end))
            return end
        if isinstance(node, Cat):
            for part in node.parts:
                at = self.build(part, at)
            return at
        end = self.new()
        if isinstance(node, Both):
            return self.embed(_met(automaton(node.first), automaton(node.second)), at, end)
        if isinstance(node, Alt):
            for part in node.parts:
                begin = self.new()
                self.free[at].append(begin)
                self.free[self.build(part, begin)].append(end)
            return end
        for _ in range(node.low):
            at = self.build(node.node, at)
        self.free[at].append(end)
        if node.high is None:
            begin = self.new()
            self.free[at].append(begin)
            last = self.build(node.node, begin)
            self.free[last] += [begin, end]
            return end
        for _ in range(node.high - node.low):
            begin = self.new()
            self.free[at].append(begin)
            at = self.build(node.node, begin)
            self.free[at].append(end)
        return end

    def embed(self, own: Bytes, at: int, end: int) -> int:
        """Add an automaton between two states."""
        states = [self.new() for _ in own.table]
        self.free[at] += states[:1]
        for state, row, ends in zip(states, own.table, own.accept.tolist(), strict=True):
            cuts = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), 256]
            for low, high in pairwise(cuts):
                if row[low] >= 0:
                    self.moves[state].append((low, high - 1, states[row[low]]))
            self.free[state] += [end] * ends
        return end


def _met(first: Bytes, second: Bytes) -> Bytes:
    """What two automata both accept."""
    if first.empty or second.empty:
        return first if first.empty else second
    pairs, order, rows = {(0, 0): 0}, [(0, 0)], []
    for a, b in order:  # which grows
        row = np.full(256, -1, np.int32)
        for at in np.flatnonzero((first.table[a] >= 0) & (second.table[b] >= 0)).tolist():
            pair = int(first.table[a, at]), int(second.table[b, at])
            if pair not in pairs:
                _check(len(pairs))
                pairs[pair] = len(order)
                order.append(pair)
            row[at] = pairs[pair]
        rows.append(row)
    return _minimal(np.stack(rows), np.array([bool(first.accept[a] and second.accept[b]) for a, b in order]))


def _check(states: int) -> None:
    if states >= STATES:
        raise RequestError(f"the constraint is too large: its automaton has more than {STATES} states")


def utf8(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """A range of code points without surrogates as ranges of bytes, one after the other; several of these."""
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            yield from utf8(low, last)
            yield from utf8(last + 1, high)
            return
    count = len(chr(low).encode())
    for i in range(1, count):
        part = (1 << 6 * i) - 1
        if low & ~part == high & ~part:
            continue
        if low & part:
            yield from utf8(low, low | part)
            yield from utf8((low | part) + 1, high)
            return
        if high & part != part:
            yield from utf8(low, (high & ~part) - 1)
            yield from utf8(high & ~part, high)
            return
    yield list(zip(chr(low).encode(), chr(high).encode(), strict=True))


def _determined(nfa: _Nfa, last: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Subset construction."""
    useful = [bool(moves) for moves in nfa.moves]
    useful[last] = True

    @cache
    def closure(state: int) -> frozenset[int]:
        seen, stack = {state}, [state]
        while stack:
            for other in nfa.free[stack.pop()]:
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        return frozenset(s for s in seen if useful[s])

    ids: dict[frozenset[int], int] = {}
    by_targets: dict[frozenset[int], int] = {}
    sets: list[frozenset[int]] = []

    def number(targets: frozenset[int]) -> int:
        if targets not in by_targets:
            whole = frozenset[int]().union(*map(closure, targets))
            if whole not in ids:
                _check(len(ids))
                ids[whole] = len(sets)
                sets.append(whole)
            by_targets[targets] = ids[whole]
        return by_targets[targets]

    number(frozenset((0,)))
    rows = []
    for subset in sets:  # which grows
        row = np.full(256, -1, np.int32)
        for low, high, targets in _runs([move for state in subset for move in nfa.moves[state]]):
            row[low:high] = number(targets)
        rows.append(row)
    return np.stack(rows), np.array([last in subset for subset in sets])


def _runs(moves: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """Stretches of bytes with equal targets, of moves that overlap."""
    opens: dict[int, list[int]] = {}
    for low, high, target in moves:
        opens.setdefault(low, []).append(target + 1)
        opens.setdefault(high + 1, []).append(-target - 1)
    active, before = Counter[int](), 0
    for at in sorted(opens):
        if active:
            yield before, at, frozenset(active)
        for change in opens[at]:
            if change > 0:
                active[change - 1] += 1
            elif active[-change - 1] > 1:
                active[-change - 1] -= 1
            else:
                del active[-change - 1]
        before = at


def _minimal(table: Ints, accept: NDArray[np.bool_]) -> Bytes:
    """The same language with the fewest states (Moore's partition, with hashes that one exact test confirms)."""
    columns = np.unique(table, axis=1)
    distance = _distance(columns, accept)
    draw = np.random.default_rng(0)
    weight = draw.integers(1, 2**63, columns.shape[1], dtype=np.uint64) | np.uint64(1)
    mark = _mixed(distance.astype(np.uint64) + np.uint64(1))
    count = 0
    while True:
        padded = np.append(mark, np.uint64(0))
        mark = _mixed(mark * np.uint64(3) + (padded[columns] * weight).sum(1, dtype=np.uint64))
        distinct, first, block = np.unique(mark, return_index=True, return_inverse=True)
        if len(distinct) == count:
            break
        count = len(distinct)
    blocks = np.append(block, -1)[table]
    if not ((blocks == blocks[first][block]).all() and (accept == accept[first][block]).all()):
        first, block, blocks = np.arange(len(table)), np.arange(len(table)), table  # two marks met by chance
    live = distance[first] >= 0
    if not live[block[0]]:
        return Bytes(np.zeros((0, 256), np.int32), np.zeros(0, bool))
    order = np.concatenate([[block[0]], np.flatnonzero(live & (np.arange(len(first)) != block[0]))])
    place = np.full(len(first) + 1, -1, np.int32)
    place[order] = np.arange(len(order))
    return Bytes(place[blocks[first[order]]], accept[first[order]])


def _distance(columns: Ints, accept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[S]`` bytes to the nearest end; -1: there is none."""
    found = np.where(accept, 0, -1).astype(np.int64)
    reached = np.append(accept, False)
    for step in range(1, len(accept) + 1):
        fresh = reached[columns].any(1) & ~reached[:-1]
        if not fresh.any():
            break
        found[fresh] = step
        reached[:-1] |= fresh
    return found


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
