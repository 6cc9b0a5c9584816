"""Parallel iterative refinement: what each rejecter marks, and when a block ends."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import unmask
from helpers import MASK, SPEC
from refusals import refuses
from unmask import registry
from unmask.core.canvas import Canvas, Update
from unmask.core.protocols import Prediction, Sampling
from unmask.reranking import score

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


# --- lengths and samples


@pytest.fixture(scope="module")
def lm() -> unmask.Model:
    return unmask.load(dtype="float32")


@pytest.mark.parametrize("ends", [False, True])
def test_candidates_are_what_they_are_alone_and_the_best_comes_first(ends: bool, lm: unmask.Model) -> None:
    """Ended ones first; with ``ends`` each is as long as it was to be."""
    prompts = ["2+2=?", "Amy has 3 apples. She buys 4 more. How many apples does Amy have?"]
    how, policy = {"temperature": 0.7, "seed": 5}, "refine(iterations=3)"
    found = unmask.rerank(lm, prompts, [7, 20], spread=1, n=2, policy=policy, ends=ends, **how)
    assert [sorted(c.gen_length for c in own) for own in found] == [[6, 6, 7, 7, 8, 8, 19, 19, 20, 20, 21, 21]] * 2
    for prompt, own in zip(prompts, found, strict=True):
        keys = [(c.result.finish_reason != "eos", -c.score) for c in own]
        assert keys == sorted(keys)
        assert len({c.score for c in own}) > 6
        for c in own[:2]:
            fixed = {c.gen_length: lm.denoiser.spec.eos[0]} if ends else None
            seed = how | {"seed": c.result.seed}
            [alone] = lm.generate(prompt, c.gen_length + ends, policy, fixed=fixed, **seed)
            assert alone.tokens == c.result.tokens
            assert alone.stats.tokens == c.gen_length or not ends
    if not ends:
        assert {c.result.finish_reason for own in found for c in own} == {"eos", "length"}


def test_the_score_is_the_papers(lm: unmask.Model) -> None:
    [[one]] = unmask.rerank(lm, "2+2=?", [9], policy="refine", alpha=1.5)
    count = one.result.stats.tokens + (one.result.finish_reason == "eos")
    total = sum(math.log(c) for c in one.result.confidence[:count])
    assert one.score == pytest.approx(total / ((5 + count) / 6) ** 1.5)
    assert score(one.result, 0) == pytest.approx(total)
    assert score(replace(one.result, finish_reason="error", error="none"), 0) == -math.inf


@pytest.mark.parametrize(
    ("lengths", "more", "named"),
    [
        ([], {}, "lengths"),
        ([3], {"spread": 3}, "lengths"),
        ([4], {"n": 0}, "n"),
        ([4], {"alpha": -1}, "alpha"),
        ([2.5], {}, "2.5"),
    ],
)
def test_what_reranking_refuses(lengths: list[int], more: dict[str, float], named: str, lm: unmask.Model) -> None:
    with refuses(unmask.RequestError, named):
        unmask.rerank(lm, "2+2=?", lengths, **more)
