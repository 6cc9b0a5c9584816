"""What of a canvas the automata of its rows have to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core.canvas import Canvas
from .automaton import LIVE, Automaton
from .paths import Bools, Floats, Ints, Union, backward


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that have a constraint, from their first masked position on.

    Attributes:
        rows: ``[R]`` which rows of the batch these are.
        automata: theirs.
        first: ``[R]`` the first masked position.
        start: ``[R]`` the automaton's state there.
        length: ``[R]`` places from there to the last that holds or predicts a token; behind it everything is masked.
        left: ``[R]`` positions of the row behind that.
        given: ``[P, R]`` the class of the token at each place; -1: it is masked; C or more: it has none.
    """

    rows: Ints
    automata: tuple[Automaton, ...]
    first: Ints
    start: Ints
    length: Ints
    left: Ints
    given: Ints

    @staticmethod
    def of(number: Tensor, start: Tensor, canvas: Canvas, lines: tuple[Tensor, Tensor] | None = None) -> Rows:
        """The rows of a canvas; waits for the device.

        Args:
            number, start: ``[B]``, see :class:`~unmask.constraints.batch.Constraints`.
            canvas: the rows.
            lines: rows and positions ``[N]`` that have a prediction; rows that are full do not count then.
        """
        numbers, states, prompt, total = torch.stack([number, start, canvas.prompt, canvas.wanted]).cpu().numpy()
        tokens, place = canvas.tokens.cpu().numpy(), np.arange(canvas.tokens.shape[1])
        inside = (place >= prompt[:, None]) & (place < total[:, None])
        masked = (tokens == canvas.spec.mask) & inside
        counts = inside & ~masked
        if lines is not None:
            counts[tuple(torch.stack(lines).cpu().numpy())] = True
            counts &= inside
        rows = np.flatnonzero((numbers > 0) & (masked.any(1) | (lines is None)))
        automata = tuple(LIVE[own] for own in numbers[rows].tolist())
        tokens, masked, counts, prompt, total = (own[rows] for own in (tokens, masked, counts, prompt, total))
        first = np.where(masked.any(1), masked.argmax(1), total)
        length = np.maximum(_behind(counts) - first, 0)
        classes, every = _classes(automata, tokens), np.arange(len(rows))
        places = (first + np.arange(int(length.max(initial=0)))[:, None]).clip(max=tokens.shape[1] - 1)
        given = np.where(masked[every, places], -1, classes[every, places])
        return Rows(
            rows,
            automata,
            first,
            _prefix(automata, states[rows], prompt, first, classes),
            length,
            total - first - length,
            given,
        )

    @property
    def union(self) -> Union:
        """The rows' automata as one."""
        return Union.of(self.automata)

    def part(self, some: slice) -> Rows:
        """Some of the rows, with the places that these need."""
        names = ("rows", "automata", "first", "start", "length", "left")
        own = replace(self, **{name: getattr(self, name)[some] for name in names})
        return replace(own, given=self.given[: int(own.length.max(initial=0)), some])

    def after(self) -> Floats:
        """``[R, S]`` 0 where the positions that are left can complete an accepted text, -inf elsewhere."""
        fits = [own.fits(left) for own, left in zip(self.automata, self.left.tolist(), strict=True)]
        return np.where(self.union.spread(fits, False), 0.0, -np.inf)

    def blank(self) -> Floats:
        """``[P, R, C]`` scores before anything is predicted: 0 for what may stand at a place, -inf for what may not."""
        score = np.where(self.union.open[self.union.which], 0.0, -np.inf)[None].repeat(len(self.given), 0)
        at, row = np.nonzero(self.given >= 0)
        score[at, row] = -np.inf
        known = self.given[at, row] < score.shape[2]
        score[at[known], row[known], self.given[at[known], row[known]]] = 0.0
        return score

    def lost(self) -> Ints:
        """Which rows of the batch can no longer become an accepted text."""
        if not len(self.rows):
            return self.rows
        value = backward(self.union, self.blank(), self.length, self.after())
        found: Ints = self.rows[value[0, np.arange(len(self.rows)), self.start] == -np.inf]
        return found


def _classes(automata: Sequence[Automaton], tokens: Ints) -> Ints:
    """``[R, T]`` the class of each token in its row's automaton; a number behind all of them where it has none."""
    classes = np.full(tokens.shape, max((own.step.shape[1] for own in automata), default=0))
    for own in dict.fromkeys(automata):
        mine = [at for at, one in enumerate(automata) if one is own]
        found = own.classes[tokens[mine].clip(max=len(own.classes) - 1)]
        classes[mine] = np.where(found < own.step.shape[1], found, classes[mine])
    return classes


def _prefix(automata: tuple[Automaton, ...], start: Ints, prompt: Ints, first: Ints, classes: Ints) -> Ints:
    """``[R]`` the state behind the tokens in front of the first masked position."""
    if not automata:
        return start
    union = Union.of(automata)
    state: Ints = start.copy()
    dead, width = union.step.shape[1] - 1, union.step.shape[2]
    for place in range(int(prompt.min()), int(first.max())):
        own = classes[:, place]
        after = np.where(own < width, union.step[union.which, state, own.clip(max=width - 1)], dead)
        state = np.where((place >= prompt) & (place < first), after, state)
    found: Ints = state
    return found


def _behind(counts: Bools) -> Ints:
    """``[R]`` one behind the last true entry of each row; 0 where there is none."""
    found: Ints = np.where(counts.any(1), counts.shape[1] - counts[:, ::-1].argmax(1), 0)
    return found
