"""Parallel iterative refinement: what each rejecter marks, and when a block ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers import MASK, SPEC
from unmask import registry
from unmask.core.canvas import Canvas, Update
from unmask.core.protocols import Prediction, Sampling

P, N = 2, 8  # prompt and response
SURE = torch.tensor([[0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5]], dtype=torch.float64)


def blank() -> Canvas:
    return Canvas.blank([[1, 2]], [N], SPEC)


def sampling() -> Sampling:
    one = torch.ones(1)
    return Sampling(one * 0, one, one.long() * 0, one.long())


def predicted(canvas: Canvas, token: int, confidence: Tensor, score: Tensor | None = None) -> Prediction:
    """Each masked position is predicted as ``token`` with its confidence."""
    wide = torch.full(canvas.tokens.shape, -torch.inf, dtype=torch.float64)
    wide[:, P:] = torch.where(canvas.masked[:, P:], confidence, -torch.inf)
    told = torch.zeros_like(wide)
    if score is not None:
        told[:, P:] = torch.where(canvas.masked[:, P:], 0.0, score)
    return Prediction(torch.full_like(canvas.tokens, token), wide, score=told)


def written(update: Update) -> set[int]:
    return set((update.write.nonzero()[:, 1] - P).tolist())


def remasked(update: Update) -> set[int]:
    assert update.remask is not None
    return set((update.remask.nonzero()[:, 1] - P).tolist())


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ("refine(share=0.5)", {0, 2, 4, 6}),
        ("refine(share=0.25)", {0, 2, 4, 5, 6, 7}),
        ("refine(rejecter=count,count=3)", {0, 2, 4, 6, 7}),
        ("refine(rejecter=count,count=99)", {0}),
        ("refine(rejecter=disagreement)", {0, 2, 4, 6}),
        ("refine(rejecter=nothing)", set(range(N))),
        ("refine(iterations=1)", set(range(N))),
    ],
)
def test_the_first_pass(spec: str, kept: set[int]) -> None:
    policy, canvas = registry.policy(spec), blank()
    update, _ = policy.decide(canvas, predicted(canvas, 5, SURE), policy.init(canvas, sampling()))
    assert written(update) == kept
    assert not remasked(update)


def test_a_standing_token_that_has_become_improbable_is_masked_again() -> None:
    policy, canvas = registry.policy("refine(share=0.5)"), blank()
    update, state = policy.decide(canvas, predicted(canvas, 5, SURE), policy.init(canvas, sampling()))
    canvas = canvas.apply(update)
    standing = torch.full((1, N), 0.95, dtype=torch.float64)
    standing[0, 2] = 0.01
    update, _ = policy.decide(canvas, predicted(canvas, 6, SURE, standing), state)
    assert remasked(update) == {2}
    assert written(update) == {7}
    assert canvas.apply(update).tokens[0, P + 2] == MASK


def test_it_ends_when_nothing_changes() -> None:
    policy, canvas = registry.policy("refine(share=0.5,iterations=99)"), blank()
    update, state = policy.decide(canvas, predicted(canvas, 5, SURE), policy.init(canvas, sampling()))
    canvas = canvas.apply(update)
    same, _ = policy.decide(canvas, predicted(canvas, 5, SURE, SURE), state)
    assert written(same) == {1, 3, 5, 7}
    assert not remasked(same)
    other, _ = policy.decide(canvas, predicted(canvas, 6, SURE, SURE), state)
    assert written(other) != {1, 3, 5, 7}


def test_disagreement_rejects_what_was_predicted_otherwise() -> None:
    policy, canvas = registry.policy("refine(rejecter=disagreement,iterations=99)"), blank()
    update, state = policy.decide(canvas, predicted(canvas, 5, SURE), policy.init(canvas, sampling()))
    canvas = canvas.apply(update)
    answer = predicted(canvas, 5, SURE)
    token = answer.token.clone()
    token[0, P + 3] = 9
    update, _ = policy.decide(canvas, replace(answer, token=token), state)
    assert written(update) == {1, 5, 7}


def test_a_random_share_is_another_one_for_another_seed() -> None:
    policy, canvas = registry.policy("refine(rejecter=random,share=0.5)"), blank()
    found = set()
    for seed in range(6):
        state = policy.init(canvas, replace(sampling(), seed=torch.tensor([seed])))
        update, _ = policy.decide(canvas, predicted(canvas, 5, SURE), state)
        assert len(written(update)) == N // 2
        found.add(tuple(sorted(written(update))))
    assert len(found) > 1
