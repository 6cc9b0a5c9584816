"""Laws of d2Cache and of what it needs: partial answers, confidences told to a cache, attention looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import ARCH, CACHES, MASK, SHIFTS, SPEC, Request, Row, decode, laid_out, run, tiny, trail
from refusals import refuses
from unmask import registry
from unmask.caches.attention_guided import D2Cache, D2State
from unmask.core.cache import Cache
from unmask.core.canvas import Canvas
from unmask.core.errors import SpecError
from unmask.core.pick import certainty_density, nucleus
from unmask.core.protocols import Ask, Plan
from unmask.core.rows import gather
from unmask.models.attention import attention, attention_weighed

REQUESTS = [
    Request(0, [5, 6, 7], 12, ignore_eos=True),
    Request(1, [4], 9),
    Request(2, [9, 8, 7, 6], 20, ignore_eos=True),
]
POLICIES = [
    "vanilla(block_length=5)",
    "vanilla(block_length=none,steps=4)",
    "threshold(tau=0.4,block_length=none)",
    "factor(f=1.5,block_length=none)",
    "entropy_bound(gamma=1.2,block_length=none)",
    "klass(tau=0.4,kl=0.3,block_length=5)",
    "dream(steps=5,alg=topk_margin)",
    "slowfast(tau_min=0.2,tau_high=0.5,k_max=3)",
    "wino(tau_in=0.3,tau_out=0.3,block_length=6)",
    "hierarchical(tau=0.6,low=0.2,block_length=none)",
]


@dataclass(frozen=True, eq=False)
class Watched(Cache):
    """A cache whose plans are kept in ``plans``, with the canvas and the ask they answer."""

    cache: Cache
    plans: list[tuple[Canvas, Ask, Plan]]
    name = "watched"
    paper = "-"

    @property
    def needs(self) -> frozenset[str]:
        return self.cache.needs

    def stored(self, *args: Any) -> bool:
        return self.cache.stored(*args)

    def init(self, *args: Any) -> Any:
        return self.cache.init(*args)

    def layer(self, *args: Any) -> Tensor:
        return self.cache.layer(*args)

    def note(self, *args: Any) -> Any:
        return self.cache.note(*args)

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: Any) -> tuple[Plan, Any]:
        plan, state = self.cache.plan(canvas, ask, need, state)
        self.plans.append((canvas, ask, plan))
        return plan, state


def watch(policy: str, cache: str, shift: bool = False) -> Iterator[tuple[Canvas, Ask, Plan, Any]]:
    """One row's canvases, asks, plans and steps."""
    watched = Watched(registry.cache(cache), [])
    for event, _ in zip(run(tiny(shift), watched, registry.policy(policy), REQUESTS[2:], 1), range(99), strict=False):
        yield *watched.plans[-1], event


def same(got: dict[int, Row], expected: dict[int, Row]) -> None:
    for row, one in expected.items():
        assert got[row].commits == one.commits
        assert got[row].tokens == one.tokens
        assert got[row].work == pytest.approx(one.work)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("policy", [*POLICIES, "slowfast(tau_min=0.4,tau_high=0.6,suffix=cached,block_length=7)"])
def test_everything_queried_is_no_cache(policy: str, shift: bool) -> None:
    same(decode(tiny(shift), policy, "d2(k=none,p=1)", REQUESTS), decode(tiny(shift), policy, "none", REQUESTS))
    same(decode(tiny(shift), policy, "d2(k=2,p=1)", REQUESTS[:1]), decode(tiny(shift), policy, "none", REQUESTS[:1]))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_has_changed_is_queried(policy: str, shift: bool) -> None:
    changed = None
    for canvas, _, plan, event in watch(policy, "d2(k=2,p=0)", shift):
        if changed is not None:
            assert not (changed & ~plan.compute).any()
            assert not (canvas.sources(changed) & ~plan.compute).any()
        changed = event.update.write if event.update.remask is None else event.update.write | event.update.remask


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("k", [1, 3])
def test_k_masks_are_answered_where_the_policy_lets_it(k: int, shift: bool) -> None:
    """And the first forward answers all; without rollout nothing else is computed but what has just been written."""
    counts = []
    for canvas, ask, plan, event in watch("vanilla(block_length=none)", f"d2(k={k},p=0)", shift):
        answered = event.confidence > -torch.inf
        assert not (answered & ~(ask.window & canvas.masked)).any()
        counts.append(int(answered.sum()))
        if len(counts) > 1:
            assert counts[-1] <= k + 1, "k, and one whose source was written just now"
            assert int(plan.compute.sum()) <= k + 2
        else:
            assert counts[0] == 20
    assert len(counts) == 20
    assert counts[3] >= k


@pytest.mark.parametrize(
    "policy", ["hierarchical(block_length=none)", "wino(block_length=30)", "credit(block_length=none)"]
)
def test_policies_that_need_all_their_window_get_it(policy: str) -> None:
    for canvas, ask, _, event in watch(policy, "d2(k=1,p=0)"):
        assert ask.optional is None
        assert torch.equal(event.confidence > -torch.inf, ask.window & canvas.masked)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_candidate_is_enough(policy: str) -> None:
    """With k = 1 the slowest decoding commits one token in every forward, and still one."""
    for row in decode(tiny(), policy, "d2(k=1,p=0)", REQUESTS).values():
        assert row.finished == 1
        assert row.nfe <= 20 or "wino" in policy


def test_confidences_are_renewed() -> None:
    """In every forward, of all masks it computes: inside the window and outside (the published code never does)."""
    moved = 0
    for before, after, event in trail(tiny(), "vanilla(block_length=5)", "d2(k=7,p=0.3,sigma=3)", REQUESTS[2]):
        was, now = before.cache.plain, after.cache.plain
        assert isinstance(now, D2State)
        inside = event.confidence > -torch.inf
        assert torch.equal(now.confidence[inside], event.confidence[inside])
        outside = before.canvas.masked & ~event.ask.window
        renewed = now.confidence != was.confidence
        assert torch.equal(outside & renewed, outside & now.queried)
        moved += int((outside & renewed).sum())
    assert moved > 40


def naive_rollout(attention_of: list[Tensor], queried: Tensor) -> Tensor:
    """Column sums ``[T]`` of the product over layers of (A + I) / 2, whose rows that are not queried are I's."""
    total = torch.eye(len(queried), dtype=torch.float64)
    for weights in attention_of:
        full = torch.where(queried[:, None], weights, torch.eye(len(queried), dtype=torch.float64))
        mixed = full + torch.eye(len(queried), dtype=torch.float64)
        total = (mixed / mixed.sum(1, keepdim=True)) @ total
    return total.sum(0)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_rollout_is_the_product_of_the_layers(layers: int) -> None:
    """Rows of different lengths that query different positions, in one rectangle and in several, with empty slots."""
    draw = torch.Generator().manual_seed(layers)
    canvas = Canvas.blank([[1, 2], [3], [4, 5, 6]], [7, 3, 9], SPEC)
    total = canvas.tokens.shape[1]
    compute = canvas.valid & (torch.rand(3, total, generator=draw) < 0.6)
    compute[1] = False
    compute[1, 2] = True
    weights = [torch.rand(3, total, total, generator=draw, dtype=torch.float64) for _ in range(layers)]
    weights = [(w * canvas.valid[:, None]) / (w * canvas.valid[:, None]).sum(2, keepdim=True) for w in weights]
    geometry = tiny(arch=replace(ARCH, layers=layers))
    expected = torch.stack([naive_rollout([w[b] for w in weights], compute[b]) for b in range(3)])
    for parts in ([gather(compute, canvas.valid)], laid_out(compute, canvas.valid, compute.sum(1) * 1000.0)):
        state = D2Cache().init(canvas, geometry, torch.zeros(0, dtype=torch.float64))
        state = replace(state, queried=compute, importance=(~compute).double())
        for rows in parts:
            for index, full in enumerate(weights):
                at = rows.position.clamp(max=total - 1)
                seen = rows.of(full).gather(1, at[:, :, None].expand(-1, -1, total))[:, :, : rows.extent]
                D2Cache._roll(index, seen, rows, state)
        assert torch.allclose(state.importance, expected, atol=1e-12)
        assert torch.allclose(state.importance.sum(1), torch.full((3,), float(total), dtype=torch.float64))


def test_rollout_of_a_model() -> None:
    """The first forward's importance, from attention computed by hand."""
    model = tiny()
    state, after, _ = next(trail(model, "vanilla", "d2", REQUESTS[2]))
    every = torch.ones_like(state.canvas.tokens, dtype=torch.bool)
    rotary = model.network.rotate_rows(gather(every, every))
    hidden, seen = model.network.embed(state.canvas.tokens), []
    for block in model.network.blocks:
        query, key, value = block.qkv(hidden, rotary)
        key_of = key.repeat_interleave(ARCH.heads // ARCH.kv_heads, 2)
        score = torch.einsum("bqhd,bshd->bhqs", query, key_of) / ARCH.head_dim**0.5
        seen.append(score.softmax(-1).mean(1)[0])
        hidden = hidden + block.attend(query, key, value, None)
        hidden = hidden + block.mlp(hidden)
    assert torch.allclose(after.cache.plain.importance[0], naive_rollout(seen, every[0]), atol=1e-12)


@pytest.mark.parametrize("keys", ["all", "row", "query"])
@pytest.mark.parametrize("heads", [2, 6])
def test_attention_that_is_looked_at(heads: int, keys: str) -> None:
    draw = torch.Generator().manual_seed(heads)
    query = torch.randn(3, 7, heads, 4, generator=draw, dtype=torch.float64)
    key, value = (torch.randn(3, 9, 2, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    shape = {"all": None, "row": (3, 9), "query": (3, 7, 9)}[keys]
    mask = None if shape is None else torch.rand(shape, generator=draw) < 0.7
    if mask is not None:
        mask[..., 0] = True
    expected = attention(query, key, value, mask)
    for at_once in (1, 3 * heads * 9 * 2, 1 << 20):
        out, weights = attention_weighed(query, key, value, mask, at_once)
        assert torch.allclose(out, expected)
        assert torch.allclose(weights.sum(2), torch.ones(3, 7, dtype=torch.float64))
        if mask is not None:
            assert not weights.masked_select(~(mask if mask.dim() == 3 else mask[:, None])).any()
        mean = value.mean(2, keepdim=True).expand_as(value)  # then the heads differ in their weights alone
        told, weights = attention_weighed(query, key, mean, mask, at_once)
        assert torch.allclose(told.view(3, 7, heads, 4).mean(2), weights @ mean[:, :, 0])


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.floats(0.2, 40.0))
def test_density_is_the_weighted_share_of_known_positions(known: list[bool], sigma: float) -> None:
    """Before the row all is known, behind it what its end is; the row's padding does not matter."""
    size = len(known)
    got = certainty_density(torch.tensor([[*known, True, False, True]]), torch.tensor([size]), sigma)[0]
    reach = range(-400, size + 400)
    for i in range(size):
        weight = [math.exp(-((i - j) ** 2) / (2 * sigma**2)) for j in reach]
        share = sum(w for w, j in zip(weight, reach, strict=True) if j < 0 or known[min(j, size - 1)]) / sum(weight)
        assert float(got[i]) == pytest.approx(share, abs=1e-9)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.floats(0.0, 1.0), st.booleans())
def test_nucleus_is_the_smallest_that_reaches_the_share(mass: list[int], p: float, within: bool) -> None:
    """Or the largest within it."""
    found = nucleus(torch.tensor([mass], dtype=torch.float64), p, within)[0]
    inside, limit = sorted((m for m, f in zip(mass, found.tolist(), strict=True) if f), reverse=True), p * sum(mass)
    ordered = sorted(mass, reverse=True)
    assert inside == ordered[: len(inside)]
    assert 0 not in inside
    if within:
        assert sum(inside) <= limit + 1e-9 or len(inside) == 1
        assert sum(ordered[: len(inside) + 1]) >= limit - 1e-9
    else:
        assert sum(inside) >= limit - 1e-9
        assert not inside or sum(inside[:-1]) < limit + 1e-9


def chosen(cache: D2Cache, canvas: Canvas, window: Tensor, confidence: list[float], must: bool = False) -> list[int]:
    need = canvas.sources(window & canvas.masked)
    state = cache.init(canvas, tiny(), torch.zeros(0, dtype=torch.float64))
    state = replace(
        state,
        store=state.store.learn(canvas, canvas.valid),
        confidence=torch.tensor([confidence], dtype=torch.float64),
    )
    plan, _ = cache.plan(canvas, Ask(window, optional=None if must else window), need, state)
    return plan.compute[0].nonzero()[:, 0].tolist()


def test_masks_come_from_the_window_then_from_whole_blocks() -> None:
    canvas = Canvas.blank([[1, 2]], [12], SPEC)
    window = canvas.block(4)
    rising = [0.5 ** (14 - i) for i in range(14)]
    far = D2Cache(k=4, p=0.0, sigma=100.0)  # densities are about the same everywhere
    assert chosen(far, canvas, window, rising) == [2, 3, 4, 5]
    assert chosen(replace(far, k=2), canvas, window, rising) == [4, 5]
    assert chosen(replace(far, k=6), canvas, window, rising) == [2, 3, 4, 5, 8, 9], "the best two of the block after"
    assert chosen(replace(far, k=9), canvas, window, rising) == [2, 3, 4, 5, 9, 10, 11, 12, 13]
    assert chosen(replace(far, k=2), canvas, window, rising, must=True) == [2, 3, 4, 5]
    near = D2Cache(k=2, p=0.0, sigma=1.0)
    assert chosen(near, canvas, window, [0.5] * 14) == [2, 3], "the prompt is near"


def test_the_whole_response_is_one_window() -> None:
    canvas = Canvas.blank([[1, 2]], [12], SPEC)
    rising = [0.5 ** (14 - i) for i in range(14)]
    cache = D2Cache(k=3, p=0.0, sigma=100.0)
    assert chosen(cache, canvas, canvas.block(None), rising) == [11, 12, 13]
    assert chosen(replace(cache, k=None), canvas, canvas.block(None), rising) == list(range(2, 14))


def test_gaps_are_filled() -> None:
    canvas = Canvas.blank([[1, 2]], [12], SPEC)
    sure = [0.0] * 14
    for at in (3, 6, 13):
        sure[at] = 0.9
    window = canvas.block(None)
    cache = D2Cache(k=3, p=0.0, sigma=100.0)
    assert chosen(cache, canvas, window, sure) == [3, 6, 13]
    assert chosen(replace(cache, inflate=2), canvas, window, sure) == [3, 6, 13]
    assert chosen(replace(cache, inflate=3), canvas, window, sure) == [3, 4, 5, 6, 13]
    assert chosen(replace(cache, inflate=7), canvas, window, sure) == list(range(3, 14))


def test_attention_is_followed() -> None:
    """A larger share queries more, and what is queried beside masks are the positions with the most attention."""
    work = [
        decode(tiny(), "vanilla(block_length=5)", f"d2(k=5,p={p})", REQUESTS)[2].work for p in (0, 0.2, 0.6, 0.95, 1)
    ]
    assert work == sorted(work)
    assert len(set(work)) == 5
    for before, after, _ in trail(tiny(), "vanilla(block_length=5)", "d2(k=5,p=0.4,sigma=3)", REQUESTS[2]):
        was, now = before.cache.plain, after.cache.plain
        if was.queried.any():
            rest = now.queried & ~before.canvas.masked & ~was.due
            left = before.canvas.valid & ~now.queried
            assert was.importance[rest].min() >= was.importance[left].max() if rest.any() and left.any() else True


@pytest.mark.parametrize("spec", ["d2(k=0)", "d2(k=1.5)", "d2(sigma=0)", "d2(p=1.1)", "d2(p=-0.1)", "d2(inflate=-1)"])
def test_parameters_are_checked(spec: str) -> None:
    name = spec.partition("(")[2].partition("=")[0]
    with refuses(SpecError, "d2", name):
        registry.cache(spec)


@pytest.mark.parametrize("cache", [c for c in CACHES if not c.startswith("d2")])
def test_other_caches_answer_what_is_optional(cache: str) -> None:
    for canvas, ask, plan, event in watch("vanilla(block_length=none)", cache):
        assert ask.optional is not None
        assert plan.read is None
        assert torch.equal(event.confidence > -torch.inf, ask.window & canvas.masked)


@pytest.mark.parametrize("shift", SHIFTS)
def test_guidance_answers_what_both_branches_compute(shift: bool) -> None:
    """Next to no guidance: the same answers at twice the cost. Each branch follows its own attention."""
    plain = decode(tiny(shift), "vanilla(block_length=none)", "d2(k=3,p=0)", REQUESTS)
    guided = decode(tiny(shift), "vanilla(block_length=none,cfg_scale=1e-12)", "d2(k=3,p=0)", REQUESTS)
    for row, one in plain.items():
        assert guided[row].commits == one.commits
        assert guided[row].work == 2 * one.work
    for _, after, event in trail(tiny(shift), "vanilla(block_length=none,cfg_scale=0.7)", "d2(k=3,p=0.3)", REQUESTS[2]):
        both = after.cache.plain.queried & after.cache.free.queried
        assert not (event.confidence > -torch.inf).logical_and(~after.canvas.targets(both)).any()
        assert torch.equal(after.cache.plain.confidence, after.cache.free.confidence)


def test_a_committed_token_is_never_a_mask() -> None:
    for policy in POLICIES:
        for row in decode(tiny(), policy, "d2(k=2,p=0.1)", REQUESTS).values():
            assert all(token != MASK for commit in row.commits for _, token in commit)
