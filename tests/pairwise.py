"""Covering arrays: few combinations of values in which every pair of values of two factors occurs.

The packages for this (allpairspy, covertable) need as few rows, but wherever a row may hold any value of a factor they
write the same one (here: one of two values in 833 of 882 rows). Such places go to the value seen least so far.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations_with_replacement, groupby, product
from typing import Any

import pytest

FULL = os.environ.get("UNMASK_ALL", "0") not in ("", "0")  # set by `make test-all`

Row = tuple[Any, ...]
Pair = tuple[int, Any, int, Any]  # index and value (or kind) of one factor, index and value of a later one
Indices = Collection[int]


def anything(*_: Any) -> bool:
    """All combinations are possible."""
    return True


def kind(spec: str) -> tuple[str]:
    """What a spec is a variant of: its name."""
    return (spec.partition("(")[0],)


def pairs(row: Row, apart: Indices = (), kinds: Indices = ()) -> Iterator[Pair]:
    """All pairs of values in a row, each with itself too. Of two factors that are both in ``kinds``: the pair of their
    kinds; of two others that are both ``apart``: none.
    """
    for (i, a), (j, b) in combinations_with_replacement(enumerate(row), 2):
        if i != j and i in kinds and j in kinds:
            yield i, kind(a), j, kind(b)
        elif i == j or i not in apart or j not in apart:
            yield i, a, j, b


def pairwise(
    factors: Sequence[Sequence[Any]],
    possible: Callable[..., bool] = anything,
    apart: Indices = (),
    kinds: Indices = (),
) -> list[Row]:
    """Possible rows, one value per factor, in which every pair of values occurs that occurs in any possible row.

    Begins with one row for each pair of values of the two longest factors, and fills in the other factors one by one,
    with the value that brings the most new pairs, or else the one seen least beside the values already there. What is
    missing then gets rows of its own. Deterministic. Of factors that are ``apart`` all values occur, not all pairs; of
    those in ``kinds``, which are specs, every kind occurs with every kind of the others, their variants in turn.
    """
    first, *rest = sorted(range(len(factors)), key=lambda f: -len(factors[f]))

    def free(f: int) -> bool:
        return {f, first} <= set(apart) and not {f, first} <= set(kinds)

    order = [first, *sorted(rest, key=free)]
    given = [f for f in order[:2] if f == first or not free(f)]
    allowed = [row for row in product(*factors) if possible(*row)]
    missing = dict.fromkeys(_all_pairs(allowed, apart, kinds))  # in order, unlike a set
    seen: Counter[Pair] = Counter()
    rows: list[Row] = []

    @cache
    def holding() -> dict[tuple[int, Any], list[Row]]:
        found: dict[tuple[int, Any], list[Row]] = defaultdict(list)
        for row in allowed:
            for place in enumerate(row):
                found[place].append(row)
        return found

    def with_pair(i: int, a: Any, j: int, b: Any) -> Row:
        """The row with this pair that has the most new ones."""
        whole = i == j or not {i, j} <= set(kinds)  # values, not kinds of them
        rows = min(holding()[i, a], holding()[j, b], key=len) if whole else allowed
        fit = (r for r in rows if ((r[i], r[j]) if whole else (kind(r[i]), kind(r[j]))) == (a, b))
        return max(fit, key=lambda row: sum(pair in missing for pair in pairs(row, apart, kinds)))

    starts: dict[Row, list[Row]] = {}
    for row in allowed:
        starts.setdefault(tuple(row[f] for f in given), []).append(row)
    if len(given) == 2 and set(given) <= set(kinds):
        starts = {start: starts[start] for start in _turns(*(factors[f] for f in given)) if start in starts}
    while missing:
        candidates = starts.pop(next(iter(starts))) if starts else [with_pair(*next(iter(missing)))]
        for n, f in enumerate(order[len(given) :], len(given)):
            candidates = _best(candidates, f, order[:n], missing, seen)
        rows.append(candidates[0])
        seen.update(pairs(candidates[0]))
        for pair in pairs(candidates[0], apart, kinds):
            missing.pop(pair, None)
    return rows


def _all_pairs(rows: list[Row], apart: Indices, kinds: Indices) -> list[Pair]:
    """Those of all rows, each once, in the order in which the rows have them."""
    at: dict[Pair, tuple[int, int]] = {}
    for place, (i, j) in enumerate(combinations_with_replacement(range(len(rows[0]) if rows else 0), 2)):
        if i != j and i in apart and j in apart and not (i in kinds and j in kinds):
            continue
        seen: dict[Any, int] = {}
        for number, row in enumerate(rows):
            seen.setdefault((row[i], row[j]), number)
        by_kind = i != j and i in kinds and j in kinds
        for (a, b), number in seen.items():
            at.setdefault((i, kind(a), j, kind(b)) if by_kind else (i, a, j, b), (number, place))
    return sorted(at, key=at.__getitem__)


def _turns(some: Sequence[Any], others: Sequence[Any]) -> Iterator[Row]:
    """One pair for each two kinds, their variants in turn."""
    variants = [[list(same) for _, same in groupby(sorted(specs, key=kind), kind)] for specs in (some, others)]
    for (i, a), (j, b) in product(*map(enumerate, variants)):
        yield a[j % len(a)], b[i % len(b)]


def _best(candidates: list[Row], f: int, given: list[int], missing: set[Pair], seen: Counter[Pair]) -> list[Row]:
    """Those of the candidates, equal in the ``given`` factors, that have the best value of factor ``f``."""

    def rank(value: Any) -> tuple[int, int]:
        row = candidates[0]
        beside = [(g, row[g], f, value) if g < f else (f, value, g, row[g]) for g in given] + [(f, value, f, value)]
        return -sum(pair in missing for pair in beside), sum(seen[pair] for pair in beside)

    best = min(dict.fromkeys(row[f] for row in candidates), key=rank)
    return [row for row in candidates if row[f] == best]


Values = Mapping[str, Any] | Sequence[Any]


def combined(
    possible: Callable[..., bool] = anything,
    /,
    apart: Collection[str] = (),
    kinds: Collection[str] = (),
    **factors: Values,
) -> pytest.MarkDecorator:
    """``pytest.mark.parametrize`` over the factors: a covering array, or the whole product where ``UNMASK_ALL`` is set.

    A factor is a list of values, or a mapping from what the test's name shows to the value.
    """
    named = [f if isinstance(f, Mapping) else {str(value): value for value in f} for f in factors.values()]
    texts = [list(f) for f in named]

    def values(row: Row) -> list[Any]:
        return [f[text] for f, text in zip(named, row, strict=True)]

    def fits(*row: str) -> bool:
        return possible(*values(row))

    if FULL:
        rows = [row for row in product(*texts) if fits(*row)]
    else:
        indices = ([i for i, name in enumerate(factors) if name in some] for some in (apart, kinds))
        rows = pairwise(texts, fits, *indices)
    return pytest.mark.parametrize(tuple(factors), [pytest.param(*values(row), id="-".join(row)) for row in rows])
