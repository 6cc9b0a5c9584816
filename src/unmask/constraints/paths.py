"""The most probable of the texts that an automaton accepts, or one drawn from them: dynamic programming over (position,
state), for several rows with an automaton each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from .automaton import Automaton

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_TOGETHER = 32  # places whose labels are summed up at a time
_FAR = 600.0  # in log-odds; exponentials of the difference are no zeros yet


@dataclass(frozen=True, eq=False)
class Union:
    """The automata of several rows as one, padded to a common number of states S and classes C.

    States of row b are b S, b S + 1, ...; its dead state is b S + S - 1. For the other fields see
    :class:`~unmask.constraints.automaton.Automaton`.

    Attributes:
        step: ``[A, S, C]`` the next state within the row, of each distinct automaton.
        which: ``[B]`` the automaton of each row.
        open: ``[A, C]``.
    """

    step: Ints
    which: Ints
    open: Bools
    edges: Ints
    targets: Ints
    labels: Ints
    parts: Ints
    members: Ints

    @staticmethod
    def of(automata: tuple[Automaton, ...]) -> Union:
        """One automaton for each row."""
        return _union(automata)

    @property
    def states(self) -> int:
        """S."""
        return int(self.step.shape[1])

    @cached_property
    def origins(self) -> Ints:
        """The state that each transition leaves."""
        return np.repeat(np.arange(len(self.edges)), np.diff(np.append(self.edges, len(self.targets))))

    def spread(self, rows: Sequence[NDArray[np.generic]], empty: object) -> NDArray[np.generic]:
        """``[B, S]`` a value for each state of each row's automaton, ``empty`` in what pads them."""
        made = np.full((len(rows), self.states), empty)
        for row, own in zip(made, rows, strict=True):
            row[: len(own) - 1], row[-1] = own[:-1], own[-1]
        return made


@lru_cache(maxsize=8)
def _union(automata: tuple[Automaton, ...]) -> Union:
    distinct = list(dict.fromkeys(automata))
    states, classes = (max(a.step.shape[axis] for a in distinct) for axis in (0, 1))
    step = np.full((len(distinct), states, classes), states - 1)
    opened = np.zeros((len(distinct), classes), bool)
    for own, table, can in zip(distinct, step, opened, strict=True):
        live, width = own.step.shape
        table[: live - 1, :width] = np.where(own.step[:-1] == own.dead, states - 1, own.step[:-1])
        can[:width] = own.open
    edges, targets, labels, parts, members = ([np.zeros(0, np.int64)] for _ in range(5))
    at = label = member = 0
    for row, own in enumerate(automata):
        count, spare = int(own.edges[-2]), states - own.dead  # the dead state's own edge, and those that pad
        edges.append(at + np.append(own.edges[:-2], count + np.arange(spare)))
        ends = np.where(own.targets[:count] == own.dead, states - 1, own.targets[:count])
        targets.append(row * states + np.append(ends, np.full(spare, states - 1)))
        labels.append(label + np.append(own.labels[:count], np.zeros(spare, np.int64)))
        parts.append(member + own.parts[:-1])
        members.append(row * classes + own.members)
        at, label, member = at + count + spare, label + len(own.parts) - 1, member + len(own.members)
    which = np.array([distinct.index(own) for own in automata])
    return Union(step, which, opened, *(np.concatenate(own) for own in (edges, targets, labels, parts, members)))


def backward(union: Union, score: Floats, length: Ints, after: Floats, sums: Bools | None = None) -> Floats:
    """``[P + 1, B, S]`` what the rest of a text is worth from each state in front of each of P places.

    Args:
        union: the rows' automata.
        score: ``[P, B, C]`` of a token of each class; -inf: none of it may stand there.
        length: ``[B]`` the places of each row that count, of P.
        after: ``[B, S]`` what follows the last of them is worth: 0, or -inf where nothing accepted does.
        sums: ``[P, B]`` where what the ways to go on are worth is added up, as logarithms; elsewhere the best of them
            counts. None: nowhere.
    """
    places, rows, _ = score.shape
    value = np.empty((places + 1, rows, union.states))
    value[places] = after
    for end in range(places, 0, -_TOGETHER):
        some = slice(max(0, end - _TOGETHER), end)
        counts = np.arange(some.start, end)[:, None] < length
        add = np.zeros_like(counts) if sums is None else sums[some]
        ways = [
            (collect, label(score[some].reshape(end - some.start, -1), union), here)
            for collect, label, here in ((_best, _best_labels, counts & ~add), (_logsum, _sum_labels, counts & add))
            if here.any()
        ]
        for place in range(end - 1, some.start - 1, -1):
            rest, found = value[place + 1].reshape(-1).take(union.targets), after
            for collect, labels, where in ways:
                here = where[place - some.start]
                if here.any():
                    way = labels[place - some.start].take(union.labels) + rest
                    best = collect(way, union.edges, union.origins)
                    found = np.where(here[:, None], best.reshape(rows, -1), found)
            value[place] = found
    return value


def forward(union: Union, score: Floats, value: Floats, start: Ints, length: Ints) -> tuple[Ints, Ints]:
    """The path: ``[P, B]`` classes and ``[P + 1, B]`` states, each token the best by its score and what follows.

    With Gumbel noise in the scores and sums in ``value`` (see :func:`backward`) the path is a sample: it is filtered
    from the end and drawn from the front.
    """
    places, rows, _ = score.shape
    states, classes = np.empty((places + 1, rows), np.int64), np.zeros((places, rows), np.int64)
    row = np.arange(rows)
    states[0] = start
    for place in range(places):
        ways = union.step[union.which, states[place]]
        best = (score[place] + value[place + 1][row[:, None], ways]).argmax(1)
        classes[place] = best
        states[place + 1] = np.where(place < length, ways[row, best], states[place])
    return classes, states


def _best(values: Floats, parts: Ints, owner: Ints) -> Floats:
    """The largest of each part."""
    found: Floats = np.maximum.reduceat(values, parts)
    return found


def _best_labels(score: Floats, union: Union) -> Floats:
    """``[P, L]`` the best class of each label, of ``score [P, B C]``."""
    found: Floats = np.maximum.reduceat(score[:, union.members], union.parts, axis=1)
    return found


def _sum_labels(score: Floats, union: Union) -> Floats:
    """``[P, L]`` the logarithm of the sum of exponentials of each label's classes."""
    top = score.max(1, keepdims=True)
    if ((score < top - _FAR) & (score > -np.inf)).any():  # too small beside the best, but all that some label has
        owner = np.repeat(np.arange(len(union.parts)), np.diff(np.append(union.parts, len(union.members))))
        return np.stack([_logsum(own[union.members], union.parts, owner) for own in score])
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.exp(score - np.where(top > -np.inf, top, 0.0))
        found: Floats = np.log(np.add.reduceat(odds[:, union.members], union.parts, axis=1)) + top
    return np.where(top > -np.inf, found, -np.inf)


def _logsum(values: Floats, parts: Ints, owner: Ints) -> Floats:
    """The logarithm of the sum of exponentials of each part; ``owner``: the part of each value."""
    top = np.maximum.reduceat(values, parts)
    safe = np.where(top > -np.inf, top, 0.0)
    with np.errstate(divide="ignore"):
        found: Floats = np.log(np.add.reduceat(np.exp(values - safe.take(owner)), parts)) + safe
    return found
