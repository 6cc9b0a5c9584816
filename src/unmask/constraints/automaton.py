"""Automata over token ids, their transitions grouped into classes of tokens that do the same everywhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from .dfa import Bytes
from .vocabulary import Vocabulary

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_CELLS = 1 << 25  # most entries of a table [states, classes]
_AT_ONCE = 1 << 23  # entries made at a time
_NUMBERS = count(1)
LIVE: WeakValueDictionary[int, Automaton] = WeakValueDictionary()  # by number, as states of a batch refer to them


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over token ids. Texts that it accepts end in an end of text, or with the response.

    State ``S - 1`` is dead. Once the text has ended, only further ends of text follow.

    Attributes:
        step: ``[S, C]`` the next state.
        start: where a text begins.
        accept: ``[S]`` states in which a text may end.
        classes: ``[V]`` the class of each id; C: it occurs in no accepted text.
        allowed: ``[V]`` ids that may be generated; others may stand in given text alone.
        edges, targets, labels: transitions of a state s are ``edges[s]:edges[s + 1]``; each goes to one target by the
            classes of its label.
        parts, members: the classes of a label l are ``members[parts[l]:parts[l + 1]]``.
        number: names it in the state of a batch.
    """

    step: Ints
    start: int
    accept: Bools
    classes: Ints
    allowed: Bools
    edges: Ints
    targets: Ints
    labels: Ints
    parts: Ints
    members: Ints
    number: int = field(default_factory=lambda: next(_NUMBERS))

    def __post_init__(self) -> None:
        LIVE[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """One that is unpickled gets a number of its own."""
        return Automaton, tuple(getattr(self, f.name) for f in fields(self) if f.name != "number")

    @staticmethod
    def of(step: Ints, start: int, accept: Bools, classes: Ints, allowed: Bools) -> Automaton:
        """From a table ``step [S, C]`` whose last state is dead. What no accepted text needs is left out."""
        useful = _useful(step, start, accept)
        if not useful[start]:
            useful = np.zeros_like(useful)
            useful[start] = True
        kept = np.flatnonzero(useful)
        place = np.full(len(step), len(kept))
        place[kept] = np.arange(len(kept))
        columns = np.concatenate([place[step[kept]], np.full((1, step.shape[1]), len(kept))])
        distinct, merged = np.unique(columns.T, axis=0, return_inverse=True)
        living = (distinct != len(kept)).any(1)
        renamed = np.full(len(distinct) + 1, int(living.sum()))
        renamed[np.flatnonzero(living)] = np.arange(int(living.sum()))
        by_class = np.append(renamed[merged.reshape(-1)], living.sum())
        own = np.ascontiguousarray(distinct[living].T) if living.any() else np.full((len(columns), 1), len(kept))
        ends = np.append(accept[kept], False)
        return Automaton(own, int(place[start]), ends, by_class[classes], allowed, *_grouped(own))

    @staticmethod
    def from_transitions(
        transitions: Mapping[int, Mapping[int, int]],
        accept: Collection[int],
        vocab: int,
        eos: Collection[int],
        start: int = 0,
    ) -> Automaton:
        """An automaton given by code.

        Args:
            transitions: of each state the next state by token id.
            accept: states in which a text may end.
            vocab: size of the model's logits, ``lm.denoiser.spec.vocab``.
            eos: ids that end a text, ``lm.denoiser.spec.eos``; none of them may be among the transitions.
            start: the state where a text begins.

        Raises:
            RequestError: an id out of range, or one that ends a text.
        """
        names = {start, *accept, *transitions, *(s for own in transitions.values() for s in own.values())}
        place = {name: at for at, name in enumerate(sorted(names))}
        used = sorted({i for own in transitions.values() for i in own})
        odd = next((i for i in used if not 0 <= i < vocab or i in eos), None)
        if odd is not None:
            raise RequestError(
                f"constraint: transitions have the id {odd}; accepted are 0 to {vocab - 1} without {sorted(eos)}"
            )
        column = {i: at for at, i in enumerate(used)}
        end, dead = len(place), len(place) + 1
        step = np.full((dead + 1, len(used) + 1), dead)
        for state, own in transitions.items():
            for i, target in own.items():
                step[place[state], column[i]] = place[target]
        ends = np.zeros(dead + 1, bool)
        ends[[place[s] for s in accept]] = True
        classes = np.full(vocab, len(used) + 1)
        classes[used], classes[list(eos)] = np.arange(len(used)), len(used)
        _close(step, ends, end)
        return Automaton.of(step, place[start], ends, classes, classes <= len(used))

    @property
    def dead(self) -> int:
        """The state from which nothing is accepted."""
        return len(self.step) - 1

    def without(self, ids: Iterable[int]) -> Automaton:
        """The same, with ids that are not generated."""
        allowed = self.allowed.copy()
        allowed[list(ids)] = False
        return replace(self, allowed=allowed, number=next(_NUMBERS))

    @cached_property
    def open(self) -> Bools:
        """``[C]`` classes of which a token may be generated."""
        found = np.zeros(self.step.shape[1] + 1, bool)
        found[self.classes[self.allowed]] = True
        return found[:-1]

    def back(self, after: Bools, token_class: int | None = None) -> Bools:
        """``[S]`` states from which one token leads into a state of ``after``: any, or one of a given class."""
        if token_class is not None:
            return after[self.step[:, token_class]]
        way = after[self.targets] & np.logical_or.reduceat(self.open[self.members], self.parts[:-1])[self.labels]
        found: Bools = np.logical_or.reduceat(way, self.edges[:-1])
        return found

    def fits(self, length: int) -> Bools:
        """``[S]`` states from which exactly so many tokens, ends of text included, can complete an accepted text."""
        while len(self._fitting) <= length:
            after = self.back(self._fitting[-1])
            if (after == self._fitting[-1]).all():
                return after
            self._fitting.append(after)
        return self._fitting[length]

    @cached_property
    def _fitting(self) -> list[Bools]:
        return [self.accept]

    def least(self, state: int | None = None) -> int | None:
        """The fewest tokens that complete an accepted text; None: there is none."""
        state = self.start if state is None else state
        return next((n for n in range(len(self.step) + 1) if self.fits(n)[state]), None)

    def walk(self, ids: Iterable[int], state: int | None = None) -> int:
        """The state behind given ids."""
        at, last = self.start if state is None else state, self.step.shape[1]
        for i in ids:
            token_class = self.classes[i]
            at = int(self.step[at, token_class]) if token_class < last else self.dead
        return at

    def accepts(self, ids: Iterable[int]) -> bool:
        """Whether ids are an accepted text."""
        return bool(self.accept[self.walk(ids)])


def compiled(text: Bytes, vocabulary: Vocabulary) -> Automaton:
    """The automaton over tokens whose texts are those of an automaton over bytes.

    Every way to write an accepted text in tokens is accepted, not the tokenizer's own alone.

    Raises:
        RequestError: too many classes.
    """
    states = len(text.table)
    dead, end = states + 1, states
    table = np.full((states + 2, 256), dead, np.int32)
    table[:states] = np.where(text.table < 0, dead, text.table)
    ways, used = _ways(table, dead, vocabulary)
    kinds, classes_of = np.unique(used[used >= 0], return_inverse=True)
    step = np.full((dead + 1, len(kinds) + 1), dead, np.int64)
    step[:, : len(kinds)] = ways[kinds].T
    accept = np.append(text.accept, [False, False])
    classes = np.full(vocabulary.size, len(kinds) + 1)
    live = np.asarray(vocabulary.ids)[used >= 0]
    classes[live] = classes_of.reshape(-1)
    classes[list(vocabulary.eos)] = len(kinds)
    _close(step, accept, end)
    return Automaton.of(step, 0, accept, classes, classes <= len(kinds))


def _close(step: Ints, accept: Bools, end: int) -> None:
    """Let the last class, ends of text, lead from where a text may end into the state ``end``, and not out of it."""
    step[accept, -1] = end
    step[end] = len(step) - 1
    step[end, -1] = end
    accept[end] = True


def _ways(table: NDArray[np.int32], dead: int, vocabulary: Vocabulary) -> tuple[NDArray[np.int32], Ints]:
    """What tokens do: distinct functions from state to state ``[F, S]``, and the one of each token; -1: none lives."""
    length = np.diff(vocabulary.offsets)
    own = np.zeros(len(length), np.int64)
    functions = [np.arange(len(table), dtype=np.int32)]
    numbers: dict[bytes, int] = {}
    for place in range(int(length.max(initial=0))):
        live = np.flatnonzero((length > place) & (own >= 0))
        pair = own[live] * 256 + vocabulary.text[vocabulary.offsets[live] + place]
        distinct, which = np.unique(pair, return_inverse=True)
        fresh = np.full(len(distinct), -1)
        size = max(1, _AT_ONCE // len(table))
        for begin in range(0, len(distinct), size):
            some = distinct[begin : begin + size]
            before = np.stack([functions[f] for f in (some // 256).tolist()])
            after = table[before, (some % 256)[:, None]]
            for at in np.flatnonzero((after != dead).any(1)).tolist():
                key = after[at].tobytes()
                if key not in numbers:
                    numbers[key] = len(functions)
                    functions.append(after[at])
                    _check_size(len(functions), len(table))
                fresh[begin + at] = numbers[key]
        own[live] = fresh[which.reshape(-1)]
    own[length == 0] = -1
    return np.stack(functions), own


def _check_size(classes: int, states: int) -> None:
    if classes * states > _CELLS:
        raise RequestError(
            f"the constraint is too large: {states} states with more than {classes} classes of tokens; at most "
            f"{_CELLS} of their products"
        )


def _useful(step: Ints, start: int, accept: Bools) -> Bools:
    """``[S]`` states on the way from the start to an accepted end."""
    dead, size = len(step) - 1, len(step)
    source, target = np.divmod(np.unique(np.arange(size)[:, None] * size + step), size)
    live = target != dead
    source, target = source[live], target[live]
    found = []
    for first, begin, end in ((np.arange(size) == start, source, target), (accept, target, source)):
        reached, fresh = first.copy(), first
        while fresh.any():
            after = np.zeros(size, bool)
            after[end[fresh[begin]]] = True
            fresh = after & ~reached
            reached |= fresh
        found.append(reached)
    both: Bools = found[0] & found[1]
    both[dead] = False
    return both


def _grouped(step: Ints) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Transitions by state and target, and the distinct sets of classes that lead from one to another."""
    dead = len(step) - 1
    labels: dict[bytes, int] = {}
    sets: list[Ints] = []
    edges, targets, names = [0], list[int](), list[int]()
    for row in step:
        order = np.argsort(row, kind="stable")
        cut = np.flatnonzero(np.diff(row[order])) + 1
        groups = [own for own in np.split(order, cut) if row[own[0]] != dead]
        for own in groups:
            key = own.tobytes()
            if key not in labels:
                labels[key] = len(sets)
                sets.append(own)
            names.append(labels[key])
            targets.append(int(row[own[0]]))
        if not groups:  # every state has a transition, if only one to nowhere
            names.append(0)
            targets.append(dead)
        edges.append(len(targets))
    sets = sets or [np.zeros(1, np.int64)]
    parts = np.cumsum([0, *map(len, sets)])
    return np.array(edges), np.array(targets), np.array(names), parts, np.concatenate(sets)
