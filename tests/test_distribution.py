"""One token a forward samples the model's own distribution: chi-square tests against every path that a policy can take.

At temperature 1 each commit is a draw from the model's conditional, given what stands already; a policy's order decides
which conditionals these are. A path is the tuple of its (position, token) commits. With five ids and three masks all
paths can be written down with their probabilities, from plain forwards (``helpers.forward``), for orders that are
given, drawn, or depend on what was drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from helpers import MASK, SHIFT, SPEC, VERIFIER, Request, forward, run, tiny
from pairwise import FULL, combined
from unmask import registry
from unmask.models.denoiser import Denoiser

SAYABLE, PROMPT, ROWS, TOGETHER = 5, (7, 21), 12000 if FULL else 8000, 400
Text = tuple[int, ...]
Path = tuple[tuple[int, int], ...]
Lines = dict[int, list[float]]  # of each mask the probabilities of the ids
Rule = Callable[[Text, Lines], Iterator[tuple[tuple[int, int], float]]]  # the commits of a forward, and how likely


@cache
def small(shift: bool) -> Denoiser:
    """Five ids may be said; no end of text is among them. Its distributions are wide."""
    network = deepcopy(tiny(shift).network)
    assert network.head is not None
    network.head.weight.data *= 0.25
    return Denoiser(network, replace(SPEC, shift=shift, limit=SAYABLE))


@cache
def conditionals(shift: bool, text: Text, stop: int, temperature: float) -> Lines:
    """What a plain forward over ``text[:stop]`` says of its masks."""
    logits = forward(small(shift), text[:stop])
    logits = (logits.roll(1, 0) if shift else logits)[:, :SAYABLE]
    share = (logits / temperature).softmax(-1).tolist()
    return {at: share[at] for at, token in enumerate(text[:stop]) if token == MASK}


def first(text: Text, lines: Lines) -> Iterator[tuple[tuple[int, int], float]]:
    """The first mask."""
    at = min(lines)
    yield from (((at, token), p) for token, p in enumerate(lines[at]))


def drawn(text: Text, lines: Lines) -> Iterator[tuple[tuple[int, int], float]]:
    """Any mask, each as likely as the others."""
    for at, line in lines.items():
        yield from (((at, token), p / len(lines)) for token, p in enumerate(line))


def surest(text: Text, lines: Lines) -> Iterator[tuple[tuple[int, int], float]]:
    """A token is drawn for every mask; the likeliest of these tokens stays, the others are drawn anew."""
    for tokens in product(range(SAYABLE), repeat=len(lines)):
        share = {at: lines[at][token] for at, token in zip(lines, tokens, strict=True)}
        at = max(share, key=share.__getitem__)
        yield (at, tokens[list(lines).index(at)]), math.prod(share.values())


@cache
def paths(
    rule: Rule, shift: bool, length: int, ahead: int | None = None, temperature: float = 1.0
) -> dict[Path, float]:
    """The probability of every path; ``ahead`` positions from the first mask on are in the input (None: all)."""
    found: dict[Path, float] = {}
    whole = (*PROMPT, *[MASK] * length)
    going: list[tuple[Text, Path, float]] = [(whole, (), 1.0)]
    while going:
        text, path, likely = going.pop()
        if MASK not in text:
            found[path] = found.get(path, 0.0) + likely
            continue
        stop = len(text) if ahead is None else text.index(MASK) + ahead
        commits: dict[tuple[int, int], float] = {}
        for commit, p in rule(text, conditionals(shift, text, stop, temperature)):
            commits[commit] = commits.get(commit, 0.0) + p
        for (at, token), p in commits.items():
            going.append(((*text[:at], token, *text[at + 1 :]), (*path, (at, token)), likely * p))
    assert sum(found.values()) == pytest.approx(1)
    return found


@cache
def sampled(
    policy: str, shift: bool, length: int, kept: str = "none", first_seed: int = 0, rows: int = ROWS
) -> Counter[Path]:
    """The paths of many rows, each with a seed of its own."""
    requests = [Request(i, PROMPT, length, temperature=1.0, seed=first_seed + i) for i in range(rows)]
    taken: list[Path] = [()] * rows
    for event in run(small(shift), registry.cache(kept), registry.policy(policy), requests, TOGETHER):
        for commit in event.committed():
            taken[commit.row] += ((commit.position, commit.token),)
    return Counter(taken)


def p_value(counts: Counter[Path], expected: dict[Path, float]) -> float:
    """Of Pearson's statistic; what is expected less than five times counts as one."""
    n = counts.total()
    if any(expected.get(path, 0) == 0 for path in counts):
        return 0.0
    usual = {path: p * n for path, p in expected.items() if p * n >= 5}
    pairs = [(counts[path], mean) for path, mean in usual.items()]
    rest = n - sum(seen for seen, _ in pairs), n - sum(usual.values())
    pairs += [rest] if rest[1] >= 1 else []
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in pairs)
    half = torch.tensor([(len(pairs) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


APD = f'apd(r=1,lookahead=1,verifier="{VERIFIER}")'
CASES: dict[str, tuple[str, Rule, int | None]] = {
    "left_to_right": ("left_to_right(k=1)", first, None),
    "left_to_right-lookahead": ("left_to_right(k=1,lookahead=2)", first, 2),
    "apd": (APD, first, 1),
    "vanilla-random": ("vanilla(block_length=none,remasking=random)", drawn, None),
    "vanilla": ("vanilla(block_length=none)", surest, None),
    "threshold": ("threshold(tau=1.5)", surest, None),
}


@pytest.mark.slow
@combined(apart=("case", "shift"), case=CASES, shift=SHIFT)
def test_paths_are_as_likely_as_the_model_says(case: tuple[str, Rule, int | None], shift: bool) -> None:
    policy, rule, ahead = case
    expected = paths(rule, shift, 3, ahead)
    assert sum(p * ROWS >= 5 for p in expected.values()) > 30, "too few paths to tell anything"
    assert p_value(sampled(policy, shift, 3), expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["every(dual,1)", "dllm(kp=1,kr=1)", "d2(k=none,p=1)", "trailing(window=9)"])
def test_caches_that_recompute_everything_sample_the_same(kept: str) -> None:
    policy = "vanilla(block_length=none,remasking=random)"
    counts = sampled(policy, False, 2, kept, rows=2000)
    assert counts == sampled(policy, False, 2, rows=2000)
    assert p_value(counts, paths(drawn, False, 2)) > 1e-3


@combined(apart=("case", "shift"), case=CASES, shift=SHIFT)
def test_other_distributions_are_noticed(case: tuple[str, Rule, int | None], shift: bool) -> None:
    """Another temperature, another order, and what would be in sight without the lookahead."""
    policy, rule, ahead = case
    counts = sampled(policy, shift, 3)
    assert p_value(counts, paths(rule, shift, 3, ahead, temperature=1.15)) < 1e-6
    for other in {first, drawn, surest} - {rule}:
        assert p_value(counts, paths(other, shift, 3)) < 1e-6
    for other_ahead in {None, 1, 2} - {ahead} if rule is first else ():
        assert p_value(counts, paths(rule, shift, 3, other_ahead)) < 1e-6


def test_several_tokens_a_forward_follow_another_distribution() -> None:
    """All masks at once are independent draws: the product of the first forward's marginals, not the chain."""
    lines = conditionals(False, (*PROMPT, MASK, MASK), 4, 1.0)
    apart = {((2, a), (3, b)): lines[2][a] * lines[3][b] for a, b in product(range(SAYABLE), repeat=2)}
    counts = sampled("threshold(tau=0)", False, 2)
    assert p_value(counts, apart) > 1e-3
    assert p_value(counts, paths(first, False, 2)) < 1e-6


@pytest.mark.slow
def test_seeds_are_independent() -> None:
    """Rows with other seeds are another sample of the same distribution."""
    policy, expected = "threshold(tau=1.5)", paths(surest, False, 3)
    one, other = sampled(policy, False, 3), sampled(policy, False, 3, first_seed=1 << 40)
    assert one != other
    assert p_value(other, expected) > 1e-3
    assert p_value(one + other, expected) > 1e-3


def test_the_p_value_is_that_of_the_chi_square_distribution() -> None:
    """Two cells: the tail of a squared normal deviate. Cells expected less than five times are one cell."""
    even: dict[Path, float] = {((0, 0),): 0.5, ((0, 1),): 0.5}
    counts = Counter({((0, 0),): 560, ((0, 1),): 440})
    assert p_value(counts, even) == pytest.approx(math.erfc(math.sqrt(14.4 / 2)))
    rare: dict[Path, float] = {((0, 0),): 0.99, **{((1, i),): 0.002 for i in range(5)}}
    seen = Counter({((0, 0),): 990, **{((1, i),): 2 for i in range(5)}})
    assert p_value(seen, rare) == pytest.approx(1)
    assert p_value(seen + Counter({((2, 0),): 1}), rare) == 0
