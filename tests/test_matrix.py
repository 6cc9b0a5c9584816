"""Every policy under every cache, with and without a shifted model, on a tiny random transformer in float64.

The parameters come from the registry: what is registered is tested, with the variants that ``helpers`` lists for it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from helpers import (
    CACHES,
    EOS,
    MASK,
    POLICIES,
    SHIFTS,
    SPEC,
    Chaos,
    Poisoned,
    Request,
    Row,
    assert_same,
    decode,
    singly,
    tiny,
)
from unmask import registry
from unmask.caches.every import Every
from unmask.core import rows

pytestmark = pytest.mark.usefixtures("many_tiles")
REQUESTS = [
    Request(10, [1, 2, 3], 12),
    Request(11, [5, 6, 7, 8, 9, 10, 11], 1),
    Request(12, [4], 18, seed=3),
    Request(13, [9, 3, 2, 4, 5], 7, ignore_eos=True),
    Request(14, [20, 21], 14),
]
SAMPLED = [
    Request(20, [1, 2, 3], 9, temperature=1.2, top_p=0.95, seed=1),
    Request(21, [5, 6, 7, 8, 9, 10], 13, temperature=1.5, top_k=5, seed=2, ignore_eos=True),
    Request(22, [4], 6, seed=1),
    Request(23, [1, 2, 3], 9, temperature=1.2, top_p=0.95, seed=4),
    Request(24, [33, 34], 12, temperature=1.0, top_p=0.8, top_k=7, seed=2),
]
MATRIX = [
    pytest.param(policy, cache, id=f"{policy}-{cache}") for policy in POLICIES for cache in CACHES
]  # the two parameters in one, so that names read well
ONE_EACH = {spec.partition("(")[0]: spec for spec in CACHES}  # the last variant of each cache
REVOKING = {policy for policy in POLICIES if registry.policy(policy).remasks}


@cache
def alone(policy: str, cache: str, shift: bool, sampled: bool = False) -> dict[int, Row]:
    """Each request in a batch of its own."""
    return singly(tiny(shift), policy, cache, SAMPLED if sampled else REQUESTS)


@cache
def together(policy: str, cache: str, shift: bool) -> dict[int, Row]:
    """All in one ragged batch; rows leave as they finish."""
    return decode(tiny(shift), policy, cache, REQUESTS)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("policy", "cache"), MATRIX)
def test_a_row_alone(policy: str, cache: str, shift: bool) -> None:
    """Finishes, fills every mask before an end of text, changes no token, in at most L forwards."""
    for request in REQUESTS:
        row = alone(policy, cache, shift)[request.row]
        prompt = list(request.prompt)
        response = row.tokens[len(prompt) :]
        assert row.finished == 1
        assert row.tokens[: len(prompt)] == prompt
        assert len(response) == request.gen_length
        ends = [i for i, token in enumerate(response) if token in SPEC.eos]
        filled = response[: ends[0] + 1] if ends and not request.ignore_eos else response
        assert MASK not in filled
        assert row.nfe >= 1
        if policy not in REVOKING:
            written = [position for commit in row.commits for position, _ in commit]
            assert len(written) == len(set(written)), "a token was committed twice"
            assert all(row.commits), "a forward without effect"
            assert row.nfe <= request.gen_length
            assert len(written) + response.count(MASK) == request.gen_length
        assert 0 < row.work <= 2 * row.nfe * len(row.tokens)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("policy", "cache"), MATRIX)
def test_a_row_does_not_see_its_batch(policy: str, cache: str, shift: bool) -> None:
    """A ragged batch whose rows leave midway: each row as it is alone."""
    assert_same(together(policy, cache, shift), alone(policy, cache, shift))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("policy", "cache"), MATRIX)
def test_rows_enter_midway(policy: str, cache: str, shift: bool) -> None:
    """Two places for five requests of different widths: narrow canvases grow under stores in use.

    Nothing is read from a store that was not written before.
    """
    order = [REQUESTS[i] for i in (1, 3, 0, 4, 2)]
    poisoned = Poisoned(registry.cache(cache))
    assert_same(decode(tiny(shift), policy, poisoned, order, batch_size=2), alone(policy, cache, shift))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("cache", ONE_EACH.values())
@pytest.mark.parametrize("policy", POLICIES)
def test_sampling_does_not_see_its_batch(policy: str, cache: str, shift: bool) -> None:
    """Different temperatures, filters and seeds side by side; rows enter and leave."""
    got = decode(tiny(shift), policy, cache, SAMPLED, batch_size=3)
    assert_same(got, alone(policy, cache, shift, sampled=True))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("cache", [spec for name, spec in ONE_EACH.items() if name != "every"])
@pytest.mark.parametrize("policy", POLICIES)
def test_refreshing_in_every_forward_is_no_cache(policy: str, cache: str, shift: bool) -> None:
    """Then nothing is stale, whatever the policy allows: SlowFast's cached suffix is its full one."""
    refreshed = decode(tiny(shift), policy, Every(registry.cache(cache), 1), REQUESTS)
    assert_same(refreshed, alone(str(keeping_nothing(registry.policy(policy))), "none", shift))


def keeping_nothing(policy: Any) -> Any:
    """The policy, or the one inside, with a suffix that is recomputed."""
    if hasattr(policy, "policy"):
        return replace(policy, policy=keeping_nothing(policy.policy))
    return replace(policy, suffix="full") if getattr(policy, "suffix", None) == "cached" else policy


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("cache", ["dllm(kp=1,kr=1)", "dllm(kp=1,kr=1,rho=0,first_layer=adaptive)"])
@pytest.mark.parametrize("policy", POLICIES)
def test_intervals_of_one_are_no_cache(policy: str, cache: str, shift: bool) -> None:
    assert_same(decode(tiny(shift), policy, cache, REQUESTS), alone(policy, "none", shift))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("cache", CACHES)
def test_a_policy_that_asks_for_anything(cache: str, scale: float, shift: bool) -> None:
    """Windows without masks, positions that leave and return, stale ones, refreshes, skips, tokens taken back."""
    model, policy = tiny(shift), Chaos(scale)
    requests = [replace(r, seed=r.row) for r in REQUESTS]
    expected: dict[int, Row] = {}
    for request in requests:
        expected |= decode(model, policy, cache, [request])
    assert any(any(row.remasks) and not all(row.commits) for row in expected.values()), "too tame"
    assert all(row.finished == 1 for row in expected.values())
    assert_same(decode(model, policy, cache, requests), expected)
    poisoned = Poisoned(registry.cache(cache))
    assert_same(decode(model, policy, poisoned, requests[::-1], batch_size=2), expected)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("cache", CACHES)
def test_padded_slots_change_nothing(cache: str, shift: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the number of gathered positions is rounded up; here as well, to whatever is asked for."""
    policies = [POLICIES[0], *(p for p in POLICIES if p.startswith("slowfast"))][:4]
    expected = [alone(policy, cache, shift) for policy in policies]
    for step in (3, 8):
        monkeypatch.setattr(rows, "bucket", lambda count, total, _, by=step: min(-(-count // by) * by, total))
        for policy, plain in zip(policies, expected, strict=True):
            assert_same(decode(tiny(shift), policy, cache, REQUESTS[::2]), {r: plain[r] for r in (10, 12, 14)})
            assert_same(decode(tiny(shift), policy, cache, REQUESTS[2:3]), {12: plain[12]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("cache", CACHES)
def test_other_precisions_finish(cache: str, dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype)
    for policy in (*POLICIES[::3], Chaos(), Chaos(0.5)):
        found = decode(model, policy, cache, REQUESTS[:4:3], batch_size=2).values()
        assert all(row.finished == 1 for row in found)
        assert all(0 <= c <= 1 for row in found for c in row.confidence.values())


def test_the_matrix_is_worth_running() -> None:
    """Its rows are no trivial ones: ends of text, several tokens per forward, and caches that change something."""
    plain = [row for shift in (False, True) for p in POLICIES for row in alone(p, "none", shift).values()]
    assert any(EOS in row.tokens and MASK in row.tokens for row in plain), "no row stops early"
    assert any(len(commit) > 2 for row in plain for commit in row.commits), "no forward commits several tokens"
    assert any(len({len(c) for c in row.commits}) > 1 for row in plain)
    for name in (c for c in CACHES if "none" not in c):
        changed = [
            alone(p, name, False)[r].commits != alone(p, "none", False)[r].commits
            for p in POLICIES
            for r in alone(p, name, False)
        ]
        assert any(changed), f"{name} never changes anything"
        saved = [alone(p, name, False)[12].work < alone(p, "none", False)[12].work for p in POLICIES]
        assert any(saved), f"{name} never saves anything"


def test_seeds_and_temperatures_matter() -> None:
    runs = [alone(p, "none", shift, sampled=True) for shift in (False, True) for p in POLICIES]
    same = [run[20].tokens == run[23].tokens for run in runs]
    assert sum(same) < len(same) / 2, "other seeds, the same text"
    cold = decode(tiny(), POLICIES[0], "none", [replace(SAMPLED[0], temperature=0.0)])
    assert cold[20].tokens != alone(POLICIES[0], "none", False, sampled=True)[20].tokens


def test_variants_cover_the_registry() -> None:
    for table, specs in ((registry.POLICIES, POLICIES), (registry.CACHES, CACHES)):
        assert {spec.partition("(")[0] for spec in specs} == set(table)
