"""Laws of the rules that say which positions to commit: factor, entropy bound, KLASS, hierarchical, credit."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import MASK, SPEC, Request, Row, decode, tiny
from unmask.core.canvas import Canvas
from unmask.core.protocols import Prediction, Sampling
from unmask.policies.credit import Credit
from unmask.policies.entropy_bound import EntropyBound
from unmask.policies.factor import Factor
from unmask.policies.hierarchical import Hierarchical
from unmask.policies.klass import Klass

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]


def rows(policy: str, cache: str = "none") -> dict[int, Row]:
    return decode(tiny(), policy, cache, REQUESTS)


def prediction(confidence: list[float], entropy: list[float] | None = None) -> tuple[Canvas, Prediction]:
    """One row whose response has these confidences."""
    canvas = Canvas.blank([[1]], [len(confidence)], SPEC)
    line = torch.tensor([[-torch.inf, *confidence]], dtype=torch.float64)
    more = None if entropy is None else torch.tensor([[0.0, *entropy]], dtype=torch.float64)
    return canvas, Prediction(torch.ones_like(canvas.tokens), line, more)


@pytest.mark.parametrize(
    ("confidence", "rank", "count"),
    [
        ([0.99, 0.99, 0.99, 0.2], "exact", 3),
        ([0.99, 0.99, 0.99, 0.99], "exact", 4),
        ([0.99, 0.99, 0.99, 0.2], "last_too", 4),
        ([0.99, 0.99, 0.99, 0.99], "last_not", 3),
        ([0.3, 0.2], "exact", 1),
        ([0.3], "last_not", 1),
    ],
)
def test_factor_counts(confidence: list[float], rank: str, count: int) -> None:
    canvas, answer = prediction(confidence)
    update, _ = Factor(f=1.0, block_length=None, rank=rank).decide(canvas, answer, None)
    assert int(update.write.sum()) == count


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.floats(0.0, 5.0))
def test_factor_is_the_largest_n_that_keeps_the_bound(confidence: list[float], f: float) -> None:
    canvas, answer = prediction(confidence)
    update, _ = Factor(f=f, block_length=None).decide(canvas, answer, None)
    ordered = sorted(confidence, reverse=True)
    kept = [n for n, c in enumerate(ordered, start=1) if (n + 1) * (1 - c) < f]
    expected = max(kept, default=1)
    assert int(update.write.sum()) == expected
    assert sorted(answer.confidence[update.write].tolist(), reverse=True) == ordered[:expected]


@given(st.lists(st.floats(0.0, 4.0), min_size=1, max_size=8), st.floats(0.0, 6.0))
def test_entropy_bound_is_the_largest_set_within_gamma(entropy: list[float], gamma: float) -> None:
    canvas, answer = prediction([0.5] * len(entropy), entropy)
    update, _ = EntropyBound(gamma=gamma, block_length=None).decide(canvas, answer, None)
    ordered, expected = sorted(entropy), 1
    for n in range(1, len(ordered) + 1):
        if sum(ordered[:n]) - max(ordered[:n]) <= gamma + 1e-12:
            expected = n
    assert abs(int(update.write.sum()) - expected) <= (abs(sum(ordered[: expected - 1]) - gamma) < 1e-9)


def test_a_wide_bound_fills_each_block_at_once_and_a_narrow_one_goes_token_by_token() -> None:
    for policy in ("factor(f=1000,block_length=5)", "entropy_bound(gamma=1e9,block_length=5)"):
        assert rows(policy)[0].nfe == 3
    for policy in ("factor(f=0,block_length=5)", "klass(tau=2,block_length=5)"):
        assert [row.commits for row in rows(policy).values()] == [
            row.commits for row in rows("vanilla(block_length=5)").values()
        ]


@pytest.mark.parametrize("cache", ["none", "dllm(kp=3,kr=2,rho=0.25)"])
def test_klass_without_history_is_threshold(cache: str) -> None:
    ours, theirs = (
        rows("klass(tau=0.5,history=0,block_length=none)", cache),
        rows("threshold(tau=0.5,block_length=none)", cache),
    )
    assert [row.commits for row in ours.values()] == [row.commits for row in theirs.values()]


def test_klass_does_not_take_a_kept_answer_for_a_stable_one() -> None:
    """Between refreshes a cache that recomputes nothing repeats its answers; only refreshes count."""
    canvas = Canvas.blank([[1]], [3], SPEC)
    policy = Klass(tau=0.5, kl=0.1, history=1, block_length=None)
    zero = torch.zeros(1, dtype=torch.float64)
    state = policy.init(canvas, Sampling(zero, zero + 1, zero.long(), zero.long()))
    logits = torch.zeros(3, SPEC.vocab)
    logits[:, 7] = 9.0
    logits[:, MASK] = -torch.inf
    answer = Prediction(
        torch.full_like(canvas.tokens, 7),
        torch.tensor([[-torch.inf, 0.9, 0.9, 0.9]], dtype=torch.float64),
        logits=logits,
    )
    for fresh, committed in ((True, 1), (False, 1), (False, 1), (True, 3)):
        seen = torch.full_like(canvas.valid, fresh)
        update, state = policy.decide(
            canvas, Prediction(answer.token, answer.confidence, logits=logits, fresh=seen), state
        )
        assert int(update.write.sum()) == committed


@given(st.lists(st.one_of(st.none(), st.integers(0, 20).map(lambda n: n / 20)), min_size=1, max_size=12))
def test_hierarchical_takes_the_best_of_every_run(values: list[float | None]) -> None:
    confidence = [-torch.inf if v is None else v for v in values]
    canvas, answer = prediction(confidence)
    update, _ = Hierarchical(tau=0.8, low=0.4, block_length=None).decide(canvas, answer, None)
    found = set(update.write[0, 1:].nonzero()[:, 0].tolist())
    expected = {i for i, c in enumerate(confidence) if c > 0.8}
    runs = [
        [i for i, _ in group] for masked, group in groupby(enumerate(values), lambda iv: iv[1] is not None) if masked
    ]
    for run in runs:
        high = max(confidence[i] for i in run)
        expected |= {i for i in run if confidence[i] == high > 0.4}
    if runs:
        expected.add(max(range(len(confidence)), key=confidence.__getitem__))
    assert found == expected


def test_hierarchical_splits_runs_in_two() -> None:
    """At confidence 1 everywhere but for the order, a run of 15 takes 4 forwards when the middle is always best."""
    canvas = Canvas.blank([[1]], [15], SPEC)
    policy, forwards = Hierarchical(tau=2, low=0, block_length=None), 0
    rank = torch.tensor([[0.0, *(0.1 + (i & -i) / 32 for i in range(1, 16))]], dtype=torch.float64)
    while not bool(canvas.done):
        answer = Prediction(torch.ones_like(canvas.tokens), torch.where(canvas.masked, rank, -torch.inf))
        update, _ = policy.decide(canvas, answer, None)
        canvas, forwards = canvas.apply(update), forwards + 1
    assert forwards == 4


def test_credit_without_weight_is_threshold() -> None:
    ours, theirs = rows("credit(tau=0.5,alpha=0,block_length=5)"), rows("threshold(tau=0.5,block_length=5)")
    assert [row.commits for row in ours.values()] == [row.commits for row in theirs.values()]


def test_credit_is_earned_kept_and_spent() -> None:
    """One mask, always 0.5 for one of two tokens: the credit after n forwards is the sum of .8^k p^.2."""
    canvas = Canvas.blank([[1]], [2], SPEC)
    policy = Credit(tau=2, block_length=None)
    zero = torch.zeros(1, dtype=torch.float64)
    state = policy.init(canvas, Sampling(zero, zero + 1, zero.long(), zero.long()))
    logits = torch.full((2, SPEC.vocab), -torch.inf)
    logits[:, [3, 4]] = 0.0
    half = torch.where(canvas.masked, 0.5, -torch.inf).double()
    credit = 0.0
    for _ in range(4):
        answer = Prediction(torch.full_like(canvas.tokens, 3), half, logits=logits)
        update, state = policy.decide(canvas, answer, state)
        credit = 0.8 * credit + 0.5**0.2
        assert state.token[0, 0].tolist() == [4, 0]
        assert state.credit[0, 0].tolist() == pytest.approx([credit, 0])
        assert update.token[0, 1] == 3
