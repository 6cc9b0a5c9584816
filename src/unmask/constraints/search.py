"""Where the paths come in between the model and the policy: their tokens take the place of the likeliest ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.predict import temper, uniform, uniform_at
from ..core.protocols import Sampling
from .classes import Classes, classes_of
from .paths import Bools, Floats, Ints, backward, forward
from .rows import Rows

_CELLS = 1 << 23  # most scores of rows that are searched at a time
_HELD = 1 << 26  # most numbers that stay until the paths are known: 256 MiB in float32
_NOISE = 0x5851F42D4C957F2D  # keeps the noise of classes apart from that of tokens, which has the same counters
_FILTERED = 1e4  # how far, in log-odds, tokens that top-k or top-p leave out are behind all others

Tokens: TypeAlias = Callable[[Ints, Ints], Ints]
Pick: TypeAlias = Callable[[Ints, Ints], "tuple[Ints, Floats]"]


@dataclass(frozen=True, eq=False)
class _Lines:
    """Lines of logits of one piece whose rows have one automaton.

    Attributes:
        line: ``[n]`` which of all lines.
        at: ``[n]`` which of the piece.
        kind: the automaton's classes.
        value: ``[n, C]`` the best score of each class, noise included.
        mass: ``[n, C]`` what a class is worth altogether; None: what its best token is.
        pick: of some lines and a class of each its token, and the token's probability.
        read: what was read of the piece.
    """

    line: Ints
    at: Tensor
    kind: Classes
    value: Floats
    mass: Floats | None
    pick: Pick
    read: dict[str, Tensor]


class Search:
    """The paths of one forward pass: takes logits piece by piece, then replaces what was read of them.

    Rows at temperature 0 get the most probable accepted text; the others one drawn from the product of the tempered
    distributions, given that it is accepted.

    Args:
        text: the rows that have a constraint.
        sampling: ``[B]`` parameters.
        needs: of the policy. With ``"allowed"`` it is also read, ``[n, V]``, which tokens may stand behind the path so
            far.
        row, position: ``[N]`` of each line of logits.
        step: ``[B]`` forward passes of each row.
        masked: ``[N]`` lines whose position is masked and belongs to the response. What is read of the others stays as
            it is; what stands there is part of every path.
    """

    def __init__(
        self,
        text: Rows,
        sampling: Sampling,
        needs: frozenset[str],
        row: Tensor,
        position: Tensor,
        step: Tensor,
        masked: Tensor,
    ) -> None:
        self.text, self.sampling, self.needs = text, sampling, needs
        self.row, self.position, self.step = row, position, step
        rows, places = torch.stack([row, position]).cpu().numpy()
        slot, first = np.full((2, len(step)), -1)
        slot[text.rows], first[text.rows] = np.arange(len(text.rows)), text.first
        self.slot = np.where(
            masked.cpu().numpy(), slot[rows], -1
        )  # of each line the row among those that are searched; -1: none
        self.place = places - first[rows]
        hot = (sampling.temperature > 0).cpu().numpy()[text.rows]
        distinct = list(dict.fromkeys(text.automata))
        self.kinds = [(classes_of(own), warm) for own in distinct for warm in (False, True)]
        kind = [2 * distinct.index(own) + warm for own, warm in zip(text.automata, hot.tolist(), strict=True)]
        self.kind = np.append(np.array(kind, np.int64), -1)[self.slot]  # of each line; -1: none
        self.lines: list[_Lines] = []
        self.held = 0  # numbers that stay until the end, from which tokens are drawn then

    def add(self, piece: slice, logits: Tensor, read: dict[str, Tensor]) -> None:
        """Note the best token of each class.

        Args:
            piece: which of all lines.
            logits: ``[n, V]`` of these, suppressed ids at -inf.
            read: what :func:`unmask.core.predict.read` has made of them.
        """
        if "allowed" in self.needs:
            read["allowed"] = torch.ones_like(logits, dtype=torch.bool)
        own = self.kind[piece]
        for number, (kind, warm) in enumerate(self.kinds):
            mine = np.flatnonzero(own == number)
            if len(mine):
                at = torch.from_numpy(mine).to(logits.device)
                part = logits if len(mine) == len(logits) else logits[at]
                self.lines.append(self._noted(piece.start + mine, at, kind, warm, part, read))

    def _noted(
        self, line: Ints, at: Tensor, kind: Classes, warm: bool, logits: Tensor, read: dict[str, Tensor]
    ) -> _Lines:
        index = torch.from_numpy(line).to(logits.device)
        source = temper(logits, self.sampling, self.row[index]) if "tempered" in self.needs else logits
        likely, known = read["token"][at], read["confidence"][at].double()
        if warm:
            value, mass, tokens = self._drawn(index, kind, logits, likely)
        else:
            (value, best), mass = kind.best(logits), None
            tokens = partial(_entries, best)

        def pick(which: Ints, classes: Ints) -> tuple[Ints, Floats]:
            ids = tokens(which, classes)
            own, token = (torch.from_numpy(values).to(source.device) for values in (which, ids))
            odds = source[own, token].double() - source[own, likely[own]].double()  # behind the token read
            sure = (odds + known[own].log()).exp() if warm else odds.exp() * known[own]  # if sampled, next to 0
            return ids, sure.cpu().numpy()

        self.held += (1 + warm) * logits.numel()
        return _Lines(line, at, kind, value, mass, pick if self.held <= _HELD else _table(pick, value.shape), read)

    def _drawn(self, index: Tensor, kind: Classes, logits: Tensor, token: Tensor) -> tuple[Floats, Floats, Tokens]:
        """``[n, C]`` the largest sum of log-odds and noise of each class, what it is worth altogether, and its tokens.

        The ``token [n]`` that is drawn without a constraint is the best of all, its sum known. Those of other classes
        are drawn given that they are smaller (top-down sampling of a Gumbel process: Maddison et al., arXiv 1411.0030,
        section 3), so that there is no noise for each token.
        """
        row, rows = self.row[index], np.arange(len(token))
        counter = self.sampling.seed[row], self.position[index], self.step[row]
        best = -np.log(-np.log(uniform_at(*counter, token).cpu().numpy()))
        apart = uniform(counter[0] ^ _NOISE, *counter[1:], kind.count + 1).cpu().numpy()
        heat = self.sampling.temperature[row].double()
        if self.sampling.filters:
            logits, heat = self._tempered(logits, row), torch.ones_like(heat)
        drawn = kind.draw(logits, heat.cpu().numpy(), apart[:, -1])
        base = logits.gather(1, token[:, None])[:, 0].double() / heat
        mass = drawn.mass - base.nan_to_num(0.0, 0.0, 0.0).cpu().numpy()[:, None]
        value = -np.logaddexp(-best[:, None], np.log(-np.log(apart[:, :-1])) - mass)
        own = token.cpu().numpy()
        column = np.where(kind.automaton.allowed[own], kind.automaton.classes[own], kind.count)
        free = column < kind.count
        value[rows[free], column[free]] = best[free]

        def tokens(line: Ints, classes: Ints) -> Ints:
            return np.where(column[line] == classes, own[line], drawn.of(line, classes))

        return value, mass, tokens

    def _tempered(self, logits: Tensor, row: Tensor) -> Tensor:
        """``[n, V]`` tempered log-odds; filtered tokens, which a path may need, are far behind the others."""
        plain = temper(logits, self.sampling, row)
        if not self.sampling.filters:
            return plain
        bare = temper(logits, replace(self.sampling, filters=False), row)
        return torch.where(plain > -torch.inf, plain, bare - _FILTERED)

    def finish(self) -> None:
        """Put the paths' tokens and their probabilities in place of what was read.

        Raises:
            RuntimeError: a row holds tokens with which nothing is accepted.
        """
        places = len(self.text.given)
        width = self.text.union.step.shape[2] if len(self.text.rows) else 1
        size = max(1, _CELLS // max(1, places * width))
        for begin in range(0, len(self.text.rows), size):
            self._solve(slice(begin, begin + size))

    def _solve(self, some: slice) -> None:
        """The paths of some of the rows."""
        text = self.text.part(some)
        score, sums = text.blank(), np.zeros((len(text.given), len(text.rows)), bool)
        mine = []
        for own in self.lines:
            inside = (self.slot[own.line] >= some.start) & (self.slot[own.line] < some.stop)
            which = np.flatnonzero(inside)
            place, slot = self.place[own.line[which]], self.slot[own.line[which]] - some.start
            mine.append((own, which, place, slot))
            score[place, slot, : own.kind.count] = own.value[which]
        mass = score
        if any(own.mass is not None for own in self.lines):
            mass = score.copy()
            for own, which, place, slot in mine:
                if own.mass is not None:
                    mass[place, slot, : own.kind.count] = own.mass[which]
                    sums[place, slot] = True
        value = backward(text.union, mass, text.length, text.after(), sums if mass is not score else None)
        if (value[0, np.arange(len(text.rows)), text.start] == -np.inf).any():
            raise RuntimeError("a response cannot be completed to a text that its constraint accepts")
        classes, states = forward(text.union, score, value, text.start, text.length)
        for own, which, place, slot in mine:
            if len(which):
                self._put(own, which, classes[place, slot])
                if "allowed" in self.needs:
                    ways = text.union.step[text.union.which[slot], states[place, slot]]
                    live = value[place + 1, slot][np.arange(len(slot))[:, None], ways] + score[place, slot] > -np.inf
                    self._allow(own, which, live[:, : own.kind.count])

    @staticmethod
    def _put(own: _Lines, which: Ints, classes: Ints) -> None:
        """Replace token and confidence at some lines by those of the path's classes."""
        at, read = own.at[torch.from_numpy(which).to(own.at.device)], own.read
        for name, values in zip(("token", "confidence"), own.pick(which, classes), strict=True):
            made = torch.from_numpy(values).to(at.device, read[name].dtype)
            read[name] = read[name].index_put((at,), made)

    @staticmethod
    def _allow(own: _Lines, which: Ints, live: Bools) -> None:
        """Note the tokens of the classes ``live [n, C]`` as those that may stand at some lines."""
        at, read = own.at[torch.from_numpy(which).to(own.at.device)], own.read
        read["allowed"] = read["allowed"].index_put((at,), own.kind.allowed(live, at))


def _entries(table: NDArray[Any], line: Ints, classes: Ints) -> Any:
    return table[line, classes]


def _table(pick: Pick, shape: tuple[int, ...]) -> Pick:
    """The same, all of it looked up now, so that logits need not stay."""
    ids, sure = pick(*np.indices(shape).reshape(2, -1))
    every, known = ids.reshape(shape), sure.reshape(shape)
    return lambda line, classes: (every[line, classes], known[line, classes])
