"""From logits of tokens to the best token of each class, a few lines at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .automaton import Automaton

_LARGE = 96  # tokens of a class from which it is searched by itself
_RAISED, _LEAST = 40.0, 1e-30  # exponentials are e^_RAISED at most; a sum that is larger than _LEAST is exact
_CELL = 16  # tokens among which one is looked for after their sum was
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WORST = -1e9  # the score of a token whose logit is not finite; every path of real tokens is better


@dataclass(frozen=True, eq=False)
class Classes:
    """The tokens of each class of an automaton that may be generated."""

    automaton: Automaton

    @property
    def count(self) -> int:
        """C."""
        return int(self.automaton.step.shape[1])

    @cached_property
    def order(self) -> tuple[Ints, Ints, Ints, list[tuple[int, int, int]]]:
        """Ids by class, small classes first: ids; the small classes and where each begins; the others as (class,
        begin, end).
        """
        classes, allowed = self.automaton.classes, self.automaton.allowed
        ids = np.flatnonzero(allowed & (classes < self.count))
        ids = ids[np.argsort(classes[ids], kind="stable")]
        own, begin, size = np.unique(classes[ids], return_index=True, return_counts=True)
        small = size <= _LARGE
        few = np.concatenate([ids[b : b + n] for b, n in zip(begin[small], size[small], strict=True)] or [ids[:0]])
        starts = np.cumsum([0, *size[small][:-1]]) if small.any() else np.zeros(0, np.int64)
        large, at, parts = [], len(few), [few]
        for c, b, n in zip(own[~small], begin[~small], size[~small], strict=True):
            large.append((int(c), at, at + int(n)))
            parts.append(ids[b : b + n])
            at += int(n)
        return np.concatenate(parts), own[small], starts, large

    @cached_property
    def _index(self) -> Tensor:
        return torch.from_numpy(self.order[0])

    @cached_property
    def _sizes(self) -> Ints:
        _, _, starts, large = self.order
        few = large[0][1] if large else len(self.order[0])
        return np.diff(np.append(starts, few))

    @cached_property
    def _by_id(self) -> Tensor:
        """``[V]`` the class of each id; C where it is not generated."""
        return torch.from_numpy(np.where(self.automaton.allowed, self.automaton.classes, self.count))

    @cached_property
    def _cells(self) -> _Cells:
        return _Cells.of(*self.order)

    def best(self, logits: Tensor) -> tuple[Floats, Ints]:
        """``[N, C]`` the largest of ``logits [N, V]`` in each class, -inf in classes without tokens, and its id."""
        if logits.device.type != "cpu":
            return self.best_anywhere(logits)
        ids, few, starts, large = self.order
        value = np.full((len(logits), self.count), -np.inf)
        token = np.zeros((len(logits), self.count), np.int64)
        picked = _plain(logits.index_select(1, self._index))
        if len(few):
            part = picked[:, : large[0][1] if large else None]
            top = np.maximum.reduceat(part, starts, axis=1)
            place = np.arange(part.shape[1])
            first = np.where(part == np.repeat(top, self._sizes, axis=1), place, part.shape[1] - 1)
            value[:, few], token[:, few] = top, ids[np.minimum.reduceat(first, starts, axis=1)]
        for c, begin, end in large:
            at = picked[:, begin:end].argmax(1)
            value[:, c] = picked[np.arange(len(at)), begin + at]
            token[:, c] = ids[begin + at]
        return _finite(value, self.automaton), token

    def best_anywhere(self, logits: Tensor) -> tuple[Floats, Ints]:
        """As :meth:`best`, on any device; on a CPU ten times as long."""
        owner = self._by_id.to(logits.device).expand(len(logits), -1)
        ids = torch.arange(logits.shape[1], device=logits.device).expand_as(owner)
        value = logits.new_full((len(logits), self.count + 1), -torch.inf).scatter_reduce_(1, owner, logits, "amax")
        first = torch.where(logits == value.gather(1, owner), ids, logits.shape[1] - 1)
        token = torch.full_like(value, logits.shape[1] - 1, dtype=torch.long).scatter_reduce_(1, owner, first, "amin")
        found = value[:, :-1].double().cpu().numpy()
        return _finite(found, self.automaton), token[:, :-1].cpu().numpy()

    def draw(self, logits: Tensor, heat: Floats, uniform: Floats) -> tuple[Floats, Ints]:
        """What classes are worth altogether, and a token drawn from each.

        Args:
            logits: ``[N, V]``.
            heat: ``[N]`` temperatures above 0.
            uniform: ``[N]`` noise in (0, 1), the same for all classes of a line, of which one is chosen.

        Returns:
            ``[N, C]`` the logarithm of the sum of exponentials of the class's ``logits / heat``, -inf in classes
            without tokens, and an id, drawn in proportion to these exponentials.
        """
        if logits.device.type != "cpu":
            return self.draw_anywhere(logits, heat, uniform)
        cells, shape = self._cells, (len(logits), self.count)
        value, token = np.full(shape, -np.inf), np.zeros(shape, np.int64)
        if not len(cells.own):
            return value, token
        weight = _plain(logits.index_select(1, cells.index))
        with np.errstate(invalid="ignore", over="ignore"):
            top = (weight.max(1) - _RAISED * heat)[:, None]
            cell, total = cells.summed(cells.odds(weight, top, heat))
        if not (total > _LEAST).all():  # a class far below the best, or numbers that are not finite
            weight = np.nan_to_num(
                _plain(logits.index_select(1, cells.index)), nan=WORST, posinf=-WORST, neginf=-np.inf
            )
            top = np.maximum.reduceat(weight, cells.starts, axis=1).clip(min=WORST)
            cell, total = cells.summed(cells.odds(weight, top, heat))
        with np.errstate(divide="ignore"):
            value[:, cells.own] = top.astype(np.float64) / heat[:, None] + np.log(total)
        token[:, cells.own] = cells.ids[cells.placed(weight, cell, total, uniform)]
        return _finite(value, self.automaton), token

    def draw_anywhere(self, logits: Tensor, heat: Floats, uniform: Floats) -> tuple[Floats, Ints]:
        """As :meth:`draw`, on any device; the same but for rounding."""
        cells, device = self._cells, logits.device
        shape = len(logits), self.count
        value, token = np.full(shape, -np.inf), np.zeros(shape, np.int64)
        if not len(cells.own):
            return value, token
        owner = torch.from_numpy(np.repeat(np.arange(len(cells.own)), cells.sizes)).to(device).expand(len(logits), -1)
        picked, hot = logits[:, cells.index.to(device)].double(), torch.from_numpy(heat).to(device)[:, None]
        top = picked.new_full((len(logits), len(cells.own)), -torch.inf).scatter_reduce_(1, owner, picked, "amax")
        top = top.nan_to_num(WORST, -WORST, WORST)
        weight = ((picked - top.gather(1, owner)) / hot).exp()
        weight[:, torch.from_numpy(cells.spare).to(device)] = 0.0
        total = torch.zeros_like(top).scatter_add_(1, owner, weight)
        share = weight / torch.where(total == 0, 1.0, total).gather(1, owner)
        share[:, torch.from_numpy(cells.starts).to(device)] += total == 0
        reached = share.cumsum(1)  # of each class from its number to the next
        wanted = torch.from_numpy(uniform[:, None] + np.arange(len(cells.own))).to(device)
        place = torch.searchsorted(reached, wanted, right=True).cpu().numpy()
        value[:, cells.own] = (top / hot + total.log()).cpu().numpy()
        token[:, cells.own] = cells.ids[place.clip(cells.starts, cells.starts + cells.real - 1)]
        return _finite(value, self.automaton), token

    def allowed(self, classes: NDArray[np.bool_], like: Tensor) -> Tensor:
        """``[N, V]`` ids whose class is among ``classes [N, C]``."""
        known = torch.from_numpy(np.pad(classes, ((0, 0), (0, 1)))).to(like.device)
        return known[:, self._by_id.to(like.device)]


@dataclass(frozen=True, eq=False)
class _Cells:
    """Ids by class, each class in whole cells of ``_CELL`` ids; its first id fills up the last one.

    Attributes:
        own: ``[K]`` the classes.
        ids, index: of every place.
        starts, sizes, real: ``[K]`` where a class begins, its places, those of ids of its own.
        firsts: ``[K]`` its first cell.
        spare: places that fill up.
        runs: begin, end and classes of stretches of equally many places per class, or of one class.
    """

    own: Ints
    ids: Ints
    index: Tensor
    starts: Ints
    sizes: Ints
    real: Ints
    firsts: Ints
    spare: Ints
    runs: list[tuple[int, int, slice]]

    @staticmethod
    def of(ids: Ints, few: Ints, starts: Ints, large: list[tuple[int, int, int]]) -> _Cells:
        """From :attr:`Classes.order`."""
        own = np.append(few, [c for c, _, _ in large]).astype(np.int64)
        begins = np.append(starts, [b for _, b, _ in large]).astype(np.int64)
        real = np.diff(np.append(begins, len(ids)))
        sizes = -(-real // _CELL) * _CELL
        ends = np.cumsum(sizes)
        at = np.arange(int(sizes.sum())) - np.repeat(ends - sizes, sizes)
        spare = at >= np.repeat(real, sizes)
        made = ids[np.repeat(begins, sizes) + np.where(spare, 0, at)]
        cut = int(ends[len(few) - 1]) if len(few) else 0
        runs = [(0, cut, slice(0, len(few)))] if len(few) else []
        runs += [(int(ends[k] - sizes[k]), int(ends[k]), slice(k, k + 1)) for k in range(len(few), len(own))]
        firsts = (ends - sizes) // _CELL
        return _Cells(own, made, torch.from_numpy(made), ends - sizes, sizes, real, firsts, np.flatnonzero(spare), runs)

    def odds(self, weight: NDArray[np.floating], top: NDArray[np.floating], heat: Floats) -> NDArray[np.floating]:
        """Make of logits ``weight [N, places]`` exponentials of what they are above ``top``, ``[N, 1]`` or ``[N, K]``,
        in place.
        """
        for begin, end, some in self.runs if top.shape[1] > 1 else [(0, len(self.ids), slice(0, 1))]:
            low = top[:, some] if some.stop - some.start == 1 else np.repeat(top[:, some], self.sizes[some], axis=1)
            part = torch.from_numpy(weight[:, begin:end])
            part.sub_(torch.from_numpy(low.astype(weight.dtype)))  # several times as fast as numpy's
        if (heat != 1).any():
            weight /= heat[:, None].astype(weight.dtype)
        torch.from_numpy(weight).exp_()
        weight[:, self.spare] = 0.0
        return weight

    def summed(self, weight: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """``[N, cells]`` and ``[N, K]`` sums of cells and classes."""
        cell = (weight.reshape(-1, _CELL) @ np.ones(_CELL, weight.dtype)).reshape(len(weight), -1).astype(np.float64)
        return cell, np.add.reduceat(cell, self.firsts, axis=1)

    def placed(self, weight: NDArray[np.floating], cell: Floats, total: Floats, uniform: Floats) -> Ints:
        """``[N, K]`` a place of each class, drawn in proportion to ``weight`` by ``uniform [N]`` (:meth:`summed`)."""
        (lines, count), firsts = cell.shape, self.firsts
        cell[:, firsts] += total == 0  # of tokens that cannot be the first is taken
        many = self.sizes // _CELL
        share = cell / np.repeat(np.where(total == 0, 1.0, total), many, axis=1)
        reached = share.cumsum(1)  # of each class from its number to the next
        line, several = np.arange(lines)[:, None], np.flatnonzero(many > 1)
        wanted, apart = uniform[:, None] + several, line * (len(firsts) + 1)
        found = np.searchsorted((reached + apart).reshape(-1), (wanted + apart).reshape(-1), side="right")
        which = np.repeat(firsts[None], lines, axis=0)
        last = (firsts + many - 1)[several]
        which[:, several] = (found.reshape(wanted.shape) - line * count).clip(firsts[several], last)
        before = np.where(which == firsts, np.arange(len(firsts)), reached[line, which - 1])
        left = ((uniform[:, None] + np.arange(len(firsts)) - before) * total).reshape(-1).astype(weight.dtype)
        parts = weight.reshape(-1, _CELL).take((line * count + which).reshape(-1), axis=0)
        parts = parts @ self._upper.astype(weight.dtype)
        below = np.minimum(left, np.nextafter(parts[:, -1], weight.dtype.type(-1)))
        inside = ((parts <= below[:, None]).astype(weight.dtype) @ np.ones(_CELL, weight.dtype)).astype(np.int64)
        return which * _CELL + inside.reshape(which.shape).clip(max=_CELL - 1)

    @cached_property
    def _upper(self) -> Floats:
        return np.triu(np.ones((_CELL, _CELL)))


def classes_of(automaton: Automaton) -> Classes:
    """The classes of an automaton, found once."""
    held = vars(automaton)
    if "_classes" not in held:
        held["_classes"] = Classes(automaton)
    found: Classes = held["_classes"]
    return found


def _plain(values: Tensor) -> NDArray[np.floating]:
    found: NDArray[np.floating] = (values if values.dtype == torch.float64 else values.float()).numpy()
    return found


def _finite(value: Floats, automaton: Automaton) -> Floats:
    """-inf where a class has no token that may be generated, and nowhere else."""
    found = np.clip(np.nan_to_num(value, nan=WORST, posinf=-WORST, neginf=WORST), WORST, -WORST)
    return np.where(automaton.open, found, -np.inf)
