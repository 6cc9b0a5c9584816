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

    def mass(self, logits: Tensor) -> Floats:
        """``[N, C]`` the logarithm of the sum of exponentials of ``logits [N, V]`` in each class."""
        if logits.device.type != "cpu":
            return self.mass_anywhere(logits)
        _, few, starts, large = self.order
        value = np.full((len(logits), self.count), -np.inf)
        picked = _plain(logits.index_select(1, self._index))
        with np.errstate(divide="ignore", invalid="ignore"):
            if len(few):
                part = picked[:, : large[0][1] if large else None]
                top = np.nan_to_num(np.maximum.reduceat(part, starts, axis=1), nan=WORST, neginf=WORST)
                rest = np.exp(part - np.repeat(top, self._sizes, axis=1))
                value[:, few] = top + np.log(np.add.reduceat(rest, starts, axis=1))
            for c, begin, end in large:
                part = picked[:, begin:end]
                best = np.nan_to_num(part.max(1, keepdims=True), nan=WORST, neginf=WORST)
                value[:, c] = best[:, 0] + np.log(np.exp(part - best).sum(1))
        return _finite(value, self.automaton)

    def mass_anywhere(self, logits: Tensor) -> Floats:
        """As :meth:`mass`, on any device."""
        owner = self._by_id.to(logits.device).expand(len(logits), -1)
        top = logits.new_full((len(logits), self.count + 1), -torch.inf).scatter_reduce_(1, owner, logits, "amax")
        top = top.nan_to_num(WORST, WORST, WORST)
        parts = torch.zeros_like(top).scatter_add_(1, owner, (logits - top.gather(1, owner)).exp())
        return _finite((top + parts.log())[:, :-1].double().cpu().numpy(), self.automaton)

    def allowed(self, classes: NDArray[np.bool_], like: Tensor) -> Tensor:
        """``[N, V]`` ids whose class is among ``classes [N, C]``."""
        known = torch.from_numpy(np.pad(classes, ((0, 0), (0, 1)))).to(like.device)
        return known[:, self._by_id.to(like.device)]


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
