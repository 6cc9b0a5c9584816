"""Laws of the rules that say how many positions a forward may commit: factor, entropy bound, KLASS."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import MASK, SPEC, Row, decode, tiny
from unmask.core.canvas import Canvas
from unmask.core.protocols import Prediction, Sampling
from unmask.engine.batch import Request
from unmask.policies.entropy_bound import EntropyBound
from unmask.policies.factor import Factor
from unmask.policies.klass import Klass

REQUESTS = [Request(0, [5, 6, 7], 12, eos_stop=False), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]


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
