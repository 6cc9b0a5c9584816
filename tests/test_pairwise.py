"""The covering arrays of the other tests: nothing missing, nothing impossible, nothing lopsided."""

from __future__ import annotations

import runpy
from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pairwise
from pairwise import combined

sizes = st.lists(st.integers(1, 6), min_size=2, max_size=5)


def covered(rows, i, j):
    return {(row[i], row[j]) for row in rows}


@given(sizes)
def test_every_pair_of_values_occurs(sizes):
    factors = [range(n) for n in sizes]
    rows = pairwise.pairwise(factors)
    for i, j in combinations(range(len(factors)), 2):
        assert covered(rows, i, j) == set(product(factors[i], factors[j]))
    assert len(rows) == len(set(rows)) <= len(list(product(*factors)))


@given(sizes, st.data())
def test_only_possible_rows(sizes, data):
    """And every pair that some possible row holds."""
    factors = [range(n) for n in sizes]
    every = list(product(*factors))
    fine = data.draw(st.sets(st.sampled_from(every)))
    rows = pairwise.pairwise(factors, lambda *row: row in fine)
    assert set(rows) <= fine
    for i, j in combinations(range(len(factors)), 2):
        assert covered(rows, i, j) == covered(fine, i, j)


@given(sizes, st.data())
def test_factors_apart_meet_the_others(sizes, data):
    factors = [range(n) for n in sizes]
    apart = data.draw(st.sets(st.sampled_from(range(len(factors)))))
    rows = pairwise.pairwise(factors, apart=apart)
    for i, j in combinations(range(len(factors)), 2):
        if not {i, j} <= apart:
            assert covered(rows, i, j) == set(product(factors[i], factors[j]))
    assert all({row[i] for row in rows} == set(factor) for i, factor in enumerate(factors))


specs = st.lists(st.sampled_from(["a", "a(1)", "a(2)", "b", "b(1)", "c"]), min_size=1, max_size=6, unique=True)


@given(specs, specs, st.integers(1, 3), st.data())
def test_every_kind_meets_every_kind(some, others, third, data):
    """That any possible row shows it with, and no variant is left out."""
    every = list(product(some, others, range(third)))
    fine = data.draw(st.just(every) | st.lists(st.sampled_from(every), min_size=1))
    rows = pairwise.pairwise([some, others, range(third)], lambda *row: row in fine, kinds=[0, 1])
    assert set(rows) <= set(fine)
    for read in (lambda a, b, c: (a[0], b[0]), lambda a, b, c: (a, c), lambda a, b, c: (b, c)):
        assert {read(*row) for row in rows} == {read(*row) for row in fine}
    if fine is every and third == 1:
        pairs = len({a[0] for a in some}) * len({b[0] for b in others})
        assert pairs <= len(rows) <= pairs + len(some) + len(others)


def test_no_larger_than_needed():
    assert len(pairwise.pairwise([range(20), range(30), range(2), range(3), range(2)])) == 600
    assert len(pairwise.pairwise([range(20), range(30), range(2), range(3)], apart=[0, 1])) <= 30 * 3 + 5
    assert len(pairwise.pairwise([range(2)] * 7)) <= 8
    assert len(pairwise.pairwise([range(20), range(2), range(3)], apart=[0, 1, 2])) == 20


def test_what_may_be_anything_is_spread():
    rows = pairwise.pairwise([range(20), range(30), range(2), range(3)])
    for i, j in ((0, 2), (0, 3), (1, 2), (1, 3)):
        counts = Counter((row[i], row[j]) for row in rows)
        assert max(counts.values()) <= 2 * min(counts.values())
    assert covered([(row[0], row[2:]) for row in rows], 0, 1) == set(product(range(20), product(range(2), range(3))))


@pytest.mark.parametrize("full", [False, True])
def test_parameters(monkeypatch, full):
    """Names and values of the tests; the whole product on demand."""
    monkeypatch.setattr(pairwise, "FULL", full)
    factors = {"a": ["x", "y", "z"], "b": {"no": False, "yes": True}, "c": [1, 2]}
    mark = combined(lambda a, b, c: (a, b) != ("x", True), **factors).mark
    names, params = mark.args
    assert names == ("a", "b", "c")
    assert len(params) == (10 if full else 7)
    found = {p.id: p.values for p in params}
    assert found["y-yes-1"] == ("y", True, 1) if full else {p.values[0] for p in params} == {"x", "y", "z"}
    assert all(p.id == "-".join((p.values[0], "yes" if p.values[1] else "no", str(p.values[2]))) for p in params)
    assert ("x", True) not in {p.values[:2] for p in params}
    assert len(combined(apart=("a", "b", "c"), **factors).mark.args[1]) == (12 if full else 3)


@pytest.mark.parametrize(("value", "full"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_variable(monkeypatch, value, full):
    monkeypatch.delenv("UNMASK_ALL", raising=False)
    if value is not None:
        monkeypatch.setenv("UNMASK_ALL", value)
    assert runpy.run_path(pairwise.__file__)["FULL"] is full
