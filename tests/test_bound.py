"""LLaDA's likelihood bound: against sums over all masks, written without the package's denoiser."""

from __future__ import annotations

import itertools

import pytest
import torch

from helpers import LIMIT, MASK, Request, decode, forward, tiny
from unmask.evaluation.bound import Pair, bounds, every, greedy, masks_of, sampled

PAIR = Pair((1, 2, 3), (7, 8, 9, 10))
MANY = [PAIR, Pair((4,), (5, 6)), Pair((4,), (11, 12)), Pair((9, 8, 7, 6, 5), (13,)), Pair((2, 2), ()), PAIR]


def logp(model, tokens, guidance=0.0, prompt=0):
    """Log-probabilities ``[T, V]`` of each position of one row, by one plain pass."""
    logits = forward(model, tokens)
    if guidance:
        free = forward(model, tokens, prompt_masked=prompt)
        logits = free + (guidance + 1) * (logits - free)
    logits[:, MASK], logits[:, LIMIT:] = -torch.inf, -torch.inf
    told = logits.log_softmax(-1)
    return told.roll(1, 0) if model.spec.shift else told


def exact(model, pair, guidance=0.0):
    """The mean over l of the mean over all masks of size l of L/l * sum of log p."""
    length, start = len(pair.continuation), len(pair.context)
    total = 0.0
    for size in range(1, length + 1):
        values = []
        for hidden in itertools.combinations(range(length), size):
            tokens = [*pair.context, *(MASK if i in hidden else t for i, t in enumerate(pair.continuation))]
            told = logp(model, tokens, guidance, start)
            values.append(length / size * sum(float(told[start + i, pair.continuation[i]]) for i in hidden))
        total += sum(values) / len(values) / length
    return total


def values(model, pairs, samples, seed=0, batch_size=32, guidance=0.0):
    return {i: bound.value for i, bound in bounds(model, pairs, samples, seed, batch_size, guidance)}


@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize("shift", [False, True])
def test_all_masks_where_samples_suffice(shift, guidance):
    model = tiny(shift)
    assert values(model, [PAIR], 15, guidance=guidance)[0] == pytest.approx(exact(model, PAIR, guidance), abs=1e-9)


@pytest.mark.parametrize("samples", [1, 6, 14])
@pytest.mark.parametrize("shift", [False, True])
def test_samples_have_the_exact_bound_as_expectation(shift, samples):
    model = tiny(shift)
    found = torch.tensor([values(model, [PAIR], samples, seed)[0] for seed in range(150)], dtype=torch.float64)
    error = found.std() / len(found) ** 0.5
    assert error > 0
    assert abs(found.mean() - exact(model, PAIR)) < 4 * error


def test_the_number_of_masks_is_uniform():
    length, runs = 5, 2000
    for samples in (1, 7):
        count = torch.zeros(length + 1, dtype=torch.float64)
        at = torch.zeros(length, dtype=torch.float64)
        for seed in range(runs):
            masks, weights = sampled(length, samples, seed)
            often = weights * samples * masks.sum(1) / length
            assert often.sum() == pytest.approx(samples)
            count.index_add_(0, masks.sum(1), often)
            at += (masks * (masks.sum(1) == 1)[:, None] * often[:, None]).sum(0)
        error = (runs * samples * 0.2 * 0.8) ** 0.5
        assert (count[1:] - runs * samples / length).abs().max() < 4 * error
        assert (at - runs * samples / length**2).abs().max() < 4 * (runs * samples / length**2) ** 0.5


def test_every_mask_once():
    masks, weights = every(4)
    assert len({tuple(m.tolist()) for m in masks}) == 15
    assert masks.any(1).all()
    assert (weights * masks.sum(1)).sum() == pytest.approx(4)  # of L/l times l positions, L on average


@pytest.mark.parametrize("samples", [2, 6])
def test_noise_does_not_depend_on_the_batch(samples):
    model = tiny()
    alone = [values(model, [pair], samples, 3).get(0, 0.0) for pair in MANY]
    for size in (1, 3, 50):
        together = values(model, MANY, samples, 3, size)
        assert [together[i] for i in range(len(MANY))] == pytest.approx(alone, abs=1e-9)
    reversed_ = values(model, MANY[::-1], samples, 3, 4)
    assert [reversed_[i] for i in range(len(MANY))] == pytest.approx(alone[::-1], abs=1e-9)
    assert values(model, [PAIR], samples, 4)[0] != pytest.approx(alone[0], abs=1e-3)


def test_answers_to_one_question_share_the_noise():
    long, same, other = (Pair(c, tuple(range(10, 20))) for c in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(masks_of(long, 9, 0)[0], masks_of(same, 9, 0)[0])
    assert not torch.equal(masks_of(long, 9, 0)[0], masks_of(other, 9, 0)[0])


@pytest.mark.parametrize("shift", [False, True])
def test_greedy_is_one_most_confident_token_a_forward(shift):
    model = tiny(shift)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    requests = [Request(i, p, 4 + i, ignore_eos=True) for i, p in enumerate(prompts)]
    rows = decode(model, "vanilla(block_length=none)", "none", requests)
    said = [Pair(tuple(p), tuple(rows[i].tokens[len(p) :])) for i, p in enumerate(prompts)]
    for size in (1, 2, 9):
        assert greedy(model, said, size) == [True] * 3
    for at in range(4):
        token = said[0].continuation[at]
        wrong = (*said[0].continuation[:at], (token + 1) % 50, *said[0].continuation[at + 1 :])
        assert greedy(model, [Pair(said[0].context, wrong), said[1]], 2) == [False, True]
    assert greedy(model, [Pair((1,), ())], 1) == [True]
