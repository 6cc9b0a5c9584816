"""Policies, caches, models, sampling and batches of every kind together, on a tiny random transformer in float64.

The parameters come from the registry: what is registered is tested, with the variants that ``helpers`` lists for it.
Every policy meets every cache, their variants in turn. Every pair of values of two other factors occurs (see
``pairwise``); ``make test-all`` runs every combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from counting import LAYERS, counting
from helpers import (
    APART,
    BLOCK_CACHES,
    CACHES,
    EOS,
    MASK,
    POLICIES,
    POLICY_VARIANTS,
    SHIFT,
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
from pairwise import FULL, combined
from unmask import registry
from unmask.caches.every import Every
from unmask.core import rows
from unmask.models.denoiser import Denoiser

pytestmark = pytest.mark.usefixtures("many_tiles")
USUAL = rows._TILE_COST  # at which rows that differ share rectangles
REQUESTS = {
    "greedy": [
        Request(10, [1, 2, 3], 11),
        Request(11, [5, 6, 7, 8, 9, 10, 11], 1),
        Request(12, [4], 15, seed=3),
        Request(13, [9, 3, 2, 4, 5], 6, ignore_eos=True),
        Request(14, [20, 21], 9),
    ],
    "sampled": [  # temperatures, filters and seeds side by side, and one greedy row
        Request(20, [1, 2, 3], 9, temperature=1.2, top_p=0.95, seed=1),
        Request(21, [5, 6, 7, 8, 9, 10], 12, temperature=1.5, top_k=5, seed=2, ignore_eos=True),
        Request(22, [4], 5, seed=1),
        Request(23, [1, 2, 3], 9, temperature=1.2, top_p=0.95, seed=4),
        Request(24, [33, 34], 11, temperature=1.0, top_p=0.8, top_k=7, seed=2),
    ],
}
ONE_EACH = {spec.partition("(")[0]: spec for spec in CACHES}  # the last variant of each cache
REVOKING = {policy for policy in POLICIES if registry.policy(policy).remasks}


@cache
def together(policy: str, kept: str, shift: bool, requests: str = "greedy", block: int | None = None) -> dict[int, Row]:
    """The requests in one batch."""
    return decode(tiny(shift, block=block), policy, kept, REQUESTS[requests])


def alone(policy: str, kept: str, model: Denoiser, requests: Sequence[Request]) -> dict[int, Row]:
    """Each request in a batch of its own; the work claimed is the work done."""
    with counting(model) as seen:
        found = singly(model, policy, kept, requests)
    work = sum(row.work for row in found.values())
    several = registry.policy(policy).branches > 1  # canvases of a row share rectangles, in which there may be gaps
    for kind in LAYERS:
        assert seen.mean(kind) >= work - 1e-6 if several else seen.mean(kind) == pytest.approx(work), kind
    assert seen.mean("attn_norm") >= seen.mean("qkv_proj")  # values that are only looked at
    return found


def check_row(row: Row, request: Request, policy: str) -> None:
    """Finishes, fills every mask before an end of text, changes no token, in at most as many forwards as tokens. A
    response that may grow has any length up to its bound.
    """
    how = registry.policy(policy)
    longest = how.grows_to(request.gen_length) if how.resizes else 0
    revoking = how.remasks
    prompt, length = list(request.prompt), request.gen_length
    response = row.tokens[len(prompt) :]
    if longest:
        assert len(response) <= longest
        length = len(response)
    assert row.finished == 1
    assert row.tokens[: len(prompt)] == prompt
    assert len(response) == length
    ends = [i for i, token in enumerate(response) if token in SPEC.eos]
    filled = response[: ends[0] + 1] if ends and not request.ignore_eos else response
    assert MASK not in filled
    assert row.nfe >= 1
    if not revoking:
        written = [position for commit in row.commits for position, _ in commit]
        assert len(written) == len(set(written)), "a token was committed twice"
        assert all(row.commits), "a forward without effect"
        assert row.nfe <= length
        assert len(written) + response.count(MASK) == length
    assert 0 < row.work <= 2 * how.branches * row.nfe * (len(prompt) + max(length, longest))


def round_up(monkeypatch: pytest.MonkeyPatch, by: int) -> None:
    """The number of gathered positions is rounded up, as it is on CUDA."""
    monkeypatch.setattr(rows, "bucket", lambda count, total, _: min(-(-count // by) * by, total))


def only(found: dict[int, Row], requests: Sequence[Request]) -> dict[int, Row]:
    return {request.row: found[request.row] for request in requests}


def check_batch(
    policy: str,
    cache: str,
    model: Denoiser,
    requests: str,
    batch: str,
    singles: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[int, Row]:
    """Rows decoded together are sound, and some of them are decoded alone as they are among others.

    ragged: all in one batch, rows leave as they finish. midway: two places for five requests of other widths, so that
    narrow canvases grow under stores in use; nothing is read from a store that was not written before. padded:
    gathered positions are rounded up, for several rows and for one.
    """
    given = REQUESTS[requests]
    some = [given[single] for single in singles]
    expected = alone(policy, cache, model, some)
    if batch == "ragged":
        found = decode(model, policy, cache, given)
    elif batch == "midway":
        order = [given[i] for i in (1, 3, 0, 4, 2)]
        found = decode(model, policy, Poisoned(registry.cache(cache)), order, batch_size=2)
    else:
        round_up(monkeypatch, 8)
        assert_same(decode(model, policy, cache, some[:1]), only(expected, some[:1]))
        round_up(monkeypatch, 3)
        found = decode(model, policy, cache, given)
    for request in given:
        check_row(found[request.row], request, policy)
    assert_same(only(found, some), expected)
    return found


@combined(
    kinds=("policy", "cache"),
    apart=("policy", "cache", "single"),
    policy=POLICIES,
    cache=CACHES,
    shift=SHIFT,
    requests=list(REQUESTS),
    batch=["ragged", "midway", "padded"],
    single=range(5),
    tiles=["many", "few"],
)
def test_a_row_is_the_same_in_any_batch(
    policy: str,
    cache: str,
    shift: bool,
    requests: str,
    batch: str,
    single: int,
    tiles: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if tiles == "few":
        monkeypatch.setattr(rows, "_TILE_COST", USUAL)
    check_batch(policy, cache, tiny(shift), requests, batch, [single], monkeypatch)


@cache
def sure_of_itself() -> Denoiser:
    """Most of its confidences are close to one."""
    model = tiny()
    assert model.network.head is not None
    model.network.head.weight.data *= 6
    return model


LONG_AND_SHORT = [Request(30, [1, 2, 3], 26), Request(31, [5, 6], 9, ignore_eos=True), Request(32, [9, 3, 2, 4], 17)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_is_the_same_where_the_model_is_sure(policy: str) -> None:
    """Bounds on what is committed at once, leads, early ends: what flat distributions and short rows do not reach."""
    model = sure_of_itself()
    found = decode(model, policy, "none", LONG_AND_SHORT)
    assert_same(found, singly(model, policy, "none", LONG_AND_SHORT))


FRESH: dict[
    str, tuple[Any, bool]
] = {  # caches that reuse nothing, and whether they recompute what a policy would reuse
    **{
        f"every({kept},1)": (Every(registry.cache(kept), 1), True) for name, kept in ONE_EACH.items() if name != "every"
    },
    "trailing(window=99)": ("trailing(window=99)", False),
    "dllm(kp=1,kr=1)": ("dllm(kp=1,kr=1)", False),
    "dllm(kp=1,kr=1,rho=0)": ("dllm(kp=1,kr=1,rho=0,first_layer=adaptive)", False),
    "dllm(kp=1,rho=1,full)": ("dllm(kp=1,kr=5,rho=1,first_layer=full)", False),
    "dllm(kp=1,rho=1,adaptive)": ("dllm(kp=1,kr=5,rho=1,first_layer=adaptive)", False),
}


@combined(
    kinds=("policy", "fresh", "shift", "requests"),
    policy=POLICIES,
    fresh=FRESH,
    shift=SHIFT,
    requests=list(REQUESTS),
)
def test_a_cache_that_reuses_nothing_is_no_cache(policy: str, fresh: Any, shift: bool, requests: str) -> None:
    """The same text, confidences equal up to rounding."""
    kept, whole = fresh
    plain = str(reusing_nothing(registry.policy(policy))) if whole else policy
    got, expected = decode(tiny(shift), policy, kept, REQUESTS[requests]), together(plain, "none", shift, requests)
    if whole:
        assert_same(got, expected)
    for row, one in expected.items():
        assert got[row].commits == one.commits
        assert got[row].tokens == one.tokens
        assert got[row].confidence == pytest.approx(one.confidence, rel=1e-6)


def reusing_nothing(policy: Any) -> Any:
    """The policy, or the one inside, with a suffix that is recomputed."""
    if hasattr(policy, "policy"):
        return replace(policy, policy=reusing_nothing(policy.policy))
    return replace(policy, suffix="full") if getattr(policy, "suffix", None) == "cached" else policy


@combined(
    apart=("scale", "shift", "requests", "cache"), cache=CACHES, scale=[0.0, 0.5], shift=SHIFT, requests=list(REQUESTS)
)
def test_a_policy_that_asks_for_anything(cache: str, scale: float, shift: bool, requests: str) -> None:
    """Windows without masks, positions that leave and return, stale ones, refreshes, skips, tokens taken back. A row is
    the same in two kinds of batches, and one of them, in turn, alone.
    """
    model, policy = tiny(shift), Chaos(scale)
    given = [replace(r, seed=r.row) for r in REQUESTS[requests]]
    found = decode(model, policy, cache, given)
    assert any(any(row.remasks) and not all(row.commits) for row in found.values()), "too tame"
    assert all(row.finished == 1 for row in found.values())
    poisoned = Poisoned(registry.cache(cache))
    assert_same(decode(model, policy, poisoned, given[::-1], batch_size=2), found)
    some = given if FULL else [given[CACHES.index(cache) % len(given)]]
    assert_same(singly(model, policy, cache, some), only(found, some))


PRECISIONS = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32)}
CHAOS = {"chaos": Chaos(), "chaos(0.5)": Chaos(0.5)}


@combined(
    kinds=("policy", "requests"),
    apart=("policy", "cache", "dtype", "shift"),
    policy={p: p for p in POLICIES} | CHAOS,
    cache=CACHES,
    dtype=PRECISIONS,
    shift=SHIFT,
    requests=list(REQUESTS),
)
def test_other_precisions_finish(policy: Any, cache: str, dtype: torch.dtype, shift: bool, requests: str) -> None:
    found = decode(tiny(shift, dtype=dtype), policy, cache, REQUESTS[requests][:4:3], batch_size=2).values()
    assert all(row.finished == 1 for row in found)
    assert all(0 <= c <= 1 for row in found for c in row.confidence.values())


@pytest.mark.slow
def test_the_rows_are_no_trivial_ones() -> None:
    """Ends of text, several tokens per forward, and caches that change something."""
    some = POLICIES[::5]
    plain = [row for shift in (False, True) for p in some for row in together(p, "none", shift).values()]
    assert any(EOS in row.tokens and MASK in row.tokens for row in plain), "no row stops early"
    assert any(len(commit) > 2 for row in plain for commit in row.commits), "no forward commits several tokens"
    assert any(len({len(c) for c in row.commits}) > 1 for row in plain)
    for name in (c for c in CACHES if "none" not in c):
        pairs = ((together(p, name, False), together(p, "none", False)) for p in POLICIES)
        changed, saved = False, False
        for kept, base in pairs:
            changed |= any(kept[r].commits != base[r].commits for r in kept)
            saved |= kept[12].work < base[12].work
            if changed and saved:
                break
        assert changed, f"{name} never changes anything"
        assert saved, f"{name} never saves anything"


def test_seeds_and_temperatures_matter() -> None:
    runs = [together(p, "none", shift, "sampled") for shift in (False, True) for p in POLICIES[::3]]
    same = [run[20].tokens == run[23].tokens for run in runs]
    assert sum(same) < len(same) / 2, "other seeds, the same text"
    cold = decode(tiny(), POLICIES[0], "none", [replace(REQUESTS["sampled"][0], temperature=0.0)])
    assert cold[20].tokens != runs[0][20].tokens


def test_variants_cover_the_registry() -> None:
    caches = [*CACHES, *BLOCK_CACHES]  # those of block models and what is for these alone: see test_blocks
    for table, specs in ((registry.POLICIES, [*POLICIES, *APART]), (registry.CACHES, caches)):
        apart = {name for name, known in POLICY_VARIANTS.items() if not known}
        assert apart == {name for name in registry.POLICIES if registry.policy(name).renoises}
        assert {spec.partition("(")[0] for spec in specs} == set(table) - apart
