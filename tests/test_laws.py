"""Laws of the algorithms, and naive versions of them: plain Python over one row, one full forward at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from torch import Tensor

import unmask
from counting import LAYERS, counting
from helpers import CACHES, LIMIT, MASK, POLICIES, SHIFT, SHIFTS, SIZED, Request, Row, decode, forward, tiny, trail
from pairwise import combined
from unmask import Model, registry
from unmask.models.denoiser import Denoiser
from unmask.tasks import problems

PROMPTS = [[1, 2, 3], [4], [20, 21, 22, 23, 24, 25, 26]]
Commits = list[frozenset[tuple[int, int]]]


def run(policy: str, prompt: list[int], length: int, kept: str = "none", shift: bool = False) -> Row:
    return decode(tiny(shift), policy, kept, [Request(0, prompt, length, ignore_eos=True)])[0]


# --- naive versions ------------------------------------------------------------------------------------------------


@dataclass
class Naive:
    """One row; ``predict`` is a forward over its first ``end`` positions."""

    model: Denoiser
    prompt: list[int]
    length: int
    scale: float = 0.0
    tokens: list[int] = field(default_factory=list)
    commits: Commits = field(default_factory=list)
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = self.prompt + [MASK] * self.length

    def predict(self, end: int | None = None, cached: bool = False) -> dict[int, tuple[float, int]]:
        """Confidence and token of each masked position before ``end``; ``cached``: what lies behind ``end`` stays
        visible with the keys and values of the last forward over everything.
        """
        shown = self.tokens[:end]
        logits = self.forward_kept(shown) if cached else forward(self.model, shown)
        if self.scale:
            free = forward(self.model, shown, prompt_masked=len(self.prompt))
            logits = free + (self.scale + 1) * (logits - free)
        if self.model.spec.shift:
            logits = logits.roll(1, 0)
        logits[:, MASK] = -torch.inf
        logits[:, LIMIT:] = -torch.inf
        probability, token = logits.double().softmax(-1).max(-1)
        masks = [i for i, t in enumerate(shown) if t == MASK]
        return {i: (float(probability[i]), int(token[i])) for i in masks}

    @torch.no_grad()
    def forward_kept(self, shown: list[int]) -> Tensor:
        network, n = self.model.network, len(shown)
        hidden, rotary, kept = network.embed(torch.tensor([shown])), network.rotary[None, :n], []
        for i, block in enumerate(network.blocks):
            query, key, value = block.qkv(hidden, rotary)
            if n < len(self.tokens):
                key, value = (torch.cat([x, y[:, n:]], 1) for x, y in zip((key, value), self.kept[i], strict=True))
            kept.append((key, value))
            hidden = hidden + block.attend(query, key, value, None)
            hidden = hidden + block.mlp(hidden)
        self.kept = kept
        return network.logits(hidden[0])

    def commit(self, chosen: list[int], found: dict[int, tuple[float, int]]) -> None:
        self.commits.append(frozenset((i, found[i][1]) for i in chosen))
        for i in chosen:
            self.tokens[i] = found[i][1]

    def blocks(self, size: int | None) -> Iterator[range]:
        start, end = len(self.prompt), len(self.tokens)
        for low in range(start, end, size or self.length):
            yield range(low, min(end, low + (size or self.length)))

    def masks(self, where: range) -> list[int]:
        return [i for i in where if self.tokens[i] == MASK]


def best(found: dict[int, tuple[float, int]], among: list[int], count: int = 1) -> list[int]:
    return sorted(among, key=lambda i: (-found[i][0], i))[:count]


def naive_vanilla(row: Naive, steps: int | None, block: int | None) -> Commits:
    """LLaDA's generate: quotas of floor(masks / steps), the first ones one more."""
    blocks = list(row.blocks(block))
    for where in blocks:
        masks = len(where)
        forwards = masks if steps is None else steps // len(blocks)
        quotas = [masks // forwards + (i < masks % forwards) for i in range(forwards)]
        for quota in quotas:
            found = row.predict()
            row.commit(best(found, row.masks(where), quota), found)
    return row.commits


def naive_threshold(row: Naive, tau: float, block: int | None) -> Commits:
    """Fast-dLLM: everything sure enough, or the best."""
    for where in row.blocks(block):
        while masks := row.masks(where):
            found = row.predict()
            row.commit([i for i in masks if found[i][0] >= tau] or best(found, masks), found)
    return row.commits


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values)


@dataclass
class Cycles:
    """SlowFast (2506.10848, algorithm 1), with what the authors' code does otherwise as options."""

    tau_min: float
    tau_high: float
    k_max: int
    block: int | None = None
    window: int = 2
    sigma2: float = 1.0
    truncate: bool = False
    cached: bool = False
    slow_top: bool = True
    always_k_max: bool = False
    last: bool = False
    count: int = 0

    def run(self, row: Naive) -> Commits:
        for where in row.blocks(self.block):
            start = where.start
            while row.masks(where):
                self.count += 1
                end = self.slow(row, range(start, where.stop))
                self.fast(row, range(start, end))
                start = end
        return row.commits

    def sure(self, found: dict[int, tuple[float, int]], masks: list[int]) -> list[int]:
        return [i for i in masks if found[i][0] >= self.tau_high] or best(found, masks)

    def slow(self, row: Naive, where: range) -> int:
        ends: list[float] = []
        settled: int | None = None
        for step in range(1, self.k_max + 1):
            masks = row.masks(where)
            if not masks:
                break
            found = row.predict(None, self.cached)
            if settled is None:
                sure = [i + 1 for i in masks if found[i][0] >= self.tau_min]
                ends = [*ends, max(sure) if sure else where.start + 1][-self.window :]
                stable = step >= self.window and variance(ends) < self.sigma2
                if stable or step == self.k_max:
                    settled = int(ends[-1] if stable and self.last else sum(ends) / len(ends))
            row.commit(best(found, masks) if self.slow_top else self.sure(found, masks), found)
            if settled is not None and not self.always_k_max:
                break
        return where.stop if settled is None else settled

    def fast(self, row: Naive, where: range) -> None:
        forwards = 0
        while masks := row.masks(where):
            cut = forwards and (self.truncate or self.cached)
            found = row.predict(where.stop if cut else None, self.cached)
            row.commit(self.sure(found, masks), found)
            forwards += 1


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(
    ("spec", "steps", "block", "scale"),
    [
        ("vanilla(block_length=none)", None, None, 0.0),
        ("vanilla(block_length=4)", None, 4, 0.0),
        ("vanilla(steps=10,block_length=6)", 10, 6, 0.0),
        ("vanilla(steps=3,block_length=none)", 3, None, 0.0),
        ("vanilla(steps=6,block_length=6,cfg_scale=0.8)", 6, 6, 0.8),
        ("vanilla(block_length=99,cfg_scale=2.5)", None, None, 2.5),
    ],
)
def test_vanilla_is_the_naive_one(spec: str, steps: int | None, block: int | None, scale: float, shift: bool) -> None:
    for prompt in PROMPTS:
        assert run(spec, prompt, 12, shift=shift).commits == naive_vanilla(
            Naive(tiny(shift), prompt, 12, scale), steps, block
        )


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("tau", "block"), [(0.5, None), (0.7, 5), (0.3, 4), (1.5, 7), (0.0, 3)])
def test_threshold_is_the_naive_one(tau: float, block: int | None, shift: bool) -> None:
    spec = f"threshold(tau={tau},block_length={'none' if block is None else block})"
    for prompt in PROMPTS:
        assert run(spec, prompt, 13, shift=shift).commits == naive_threshold(Naive(tiny(shift), prompt, 13), tau, block)


SLOWFAST = {
    "suffix=full": {},
    "suffix=truncate": {"truncate": True},
    "suffix=truncate,block_length=7": {"truncate": True, "block": 7},
    "suffix=full,window=3,sigma2=6.0": {"window": 3, "sigma2": 6.0},
    "suffix=full,window=1,block_length=5": {"window": 1, "block": 5},
    "suffix=truncate,slow_commit=threshold,leave=k_max,endpoint=last,block_length=9": {
        "truncate": True,
        "slow_top": False,
        "always_k_max": True,
        "last": True,
        "block": 9,
    },
    "suffix=cached": {"cached": True},
    "suffix=cached,block_length=8,sigma2=4.0": {"cached": True, "block": 8, "sigma2": 4.0},
    "suffix=full,endpoint=last,sigma2=9.0": {"last": True, "sigma2": 9.0},
    "suffix=full,slow_commit=threshold": {"slow_top": False},
}


@combined(
    more=list(SLOWFAST),
    taus=[(0.3, 0.5, 4), (0.6, 0.7, 8), (0.45, 0.6, 1), (2, 2, 3)],
    shift=SHIFT,
    spared=range(len(PROMPTS)),
)
def test_slowfast_is_the_naive_one(more: str, taus: tuple[float, float, int], shift: bool, spared: int) -> None:
    """With all prompts but one."""
    tau_min, tau_high, k_max = taus
    spec = f"slowfast(tau_min={tau_min},tau_high={tau_high},k_max={k_max},{more})"
    for prompt in (PROMPTS[spared - 1], PROMPTS[spared - 2]):
        naive = Cycles(tau_min, tau_high, k_max, **SLOWFAST[more])
        row = run(spec, prompt, 18, shift=shift)
        assert row.commits == naive.run(Naive(tiny(shift), prompt, 18))
        assert row.nfe <= 18 + k_max * naive.count


def test_presets_are_what_the_paper_and_the_code_say() -> None:
    paper, reference = registry.policy("slowfast"), registry.policy("slowfast(preset=reference)")
    assert (paper.tau_min, paper.tau_high, paper.k_max, paper.window, paper.sigma2) == (0.1, 0.85, 8, 2, 1.0)
    assert (reference.tau_min, reference.tau_high, reference.k_max, reference.window) == (0.3, 0.9, 6, 2)
    assert (paper.k_slow, paper.k_fast, paper.block_length) == (1, 1, None)
    assert (paper.suffix, paper.slow_commit, paper.leave, paper.endpoint) == ("cached", "top", "stable", "mean")
    chosen = (reference.suffix, reference.slow_commit, reference.leave, reference.endpoint)
    assert chosen == ("truncate", "threshold", "k_max", "last")


# --- laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_steps_equal_to_the_length_take_as_many_forwards(length: int) -> None:
    row = run(f"vanilla(steps={length},block_length=none)", [1, 2, 3], length)
    assert row.nfe == length
    assert row.commits == run("vanilla(block_length=none)", [1, 2, 3], length).commits


@pytest.mark.parametrize(
    ("steps", "block", "length", "counts"),
    [(6, 7, 14, [3, 2, 2] * 2), (4, None, 10, [3, 3, 2, 2]), (9, 5, 11, [2, 2, 1] * 2 + [1]), (40, 4, 8, [1] * 8)],
)
def test_vanilla_quotas(steps: int, block: int | None, length: int, counts: list[int]) -> None:
    """Also a last block that is shorter, and more steps than masks."""
    row = run(f"vanilla(steps={steps},block_length={'none' if block is None else block})", [1, 2], length)
    assert [len(c) for c in row.commits] == counts


@pytest.mark.parametrize("kept", ["none", "prefix", "dual"])
def test_threshold_above_one_is_top_one(kept: str) -> None:
    for block in ("4", "none"):
        one = run(f"threshold(tau=1.01,block_length={block})", [5, 6], 11, kept)
        assert one.commits == run(f"vanilla(block_length={block})", [5, 6], 11, kept).commits
        assert all(len(c) == 1 for c in one.commits)


@pytest.mark.parametrize(("block", "blocks"), [("4", 4), ("13", 1), ("20", 1), ("1", 13), ("none", 1)])
def test_threshold_zero_takes_one_forward_per_block(block: str, blocks: int) -> None:
    assert run(f"threshold(tau=0,block_length={block})", [5, 6], 13).nfe == blocks


@combined(
    more=["", ",leave=k_max", ",endpoint=last", ",signal=kl", ",signal=entropy", ",k_max=1"],
    tau=[0.0, 0.35, 0.6, 0.9],
    shift=SHIFT,
)
def test_slowfast_without_tau_min_is_threshold(more: str, tau: float, shift: bool) -> None:
    spec = f"slowfast(tau_min=0,tau_high={tau},suffix=full,slow_commit=threshold{more})"
    plain = run(f"threshold(tau={tau},block_length=none)", [7, 8], 15, shift=shift)
    assert run(spec, [7, 8], 15, shift=shift).commits == plain.commits


@pytest.mark.parametrize("more", ["", ",slow_commit=threshold", ",leave=k_max,block_length=5", ",force_after=2"])
def test_slowfast_without_either_threshold_is_vanilla(more: str) -> None:
    block = "5" if "block_length" in more else "none"
    row = run(f"slowfast(tau_min=0,tau_high=1.1,suffix=full{more})", [7, 8], 15)
    assert row.commits == run(f"vanilla(block_length={block})", [7, 8], 15).commits


def phases(
    spec: str, length: int, prompt: list[int], kept: str = "none", shift: bool = False
) -> list[tuple[int, bool]]:
    """Start of the cycle and whether the forward is a slow one, for every forward of a row."""
    request = Request(0, prompt, length, ignore_eos=True)
    policy, found = registry.policy(spec), []
    for before, _, _ in trail(tiny(shift), policy, kept, request):
        state, start, _ = policy._here(before.canvas, before.policy)
        found.append((int(start[0]), int(state.fast[0]) < 0))
    return found


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("spec", [p for p in POLICIES if p.startswith("slowfast")])
def test_cycles_go_forward(spec: str, shift: bool) -> None:
    """The start strictly increases from cycle to cycle; slow forwards come before fast ones; K_max bounds them."""
    limit = registry.policy(spec).force_after or registry.policy(spec).k_max
    for kept in ("none", "dual"):
        found = phases(spec, 20, [3, 4, 5], kept, shift)
        starts = [start for start, _ in found]
        assert starts == sorted(starts)
        for cycle in dict.fromkeys(starts):
            kinds = [slow for start, slow in found if start == cycle]
            assert kinds == sorted(kinds, reverse=True), "a slow forward after a fast one in one cycle"
            assert 1 <= sum(kinds) <= limit
        assert len(found) <= 20 + limit * len(set(starts))


@pytest.mark.parametrize("forced", [1, 2, 3, 5])
@pytest.mark.parametrize("more", ["", ",leave=k_max", ",signal=kl", ",signal=entropy", ",k_max=2"])
def test_force_after(forced: int, more: str) -> None:
    """Without the stability test every cycle explores exactly so long, unless its block fills up."""
    spec = f"slowfast(tau_min=0.5,tau_high=0.9,force_after={forced},suffix=full{more})"
    found = phases(spec, 20, [3, 4])
    cycles = list(dict.fromkeys(start for start, _ in found))
    assert len(cycles) > 1
    for cycle in cycles[:-1]:
        assert sum(slow for start, slow in found if start == cycle) == forced


@pytest.mark.parametrize(("signal", "window"), [("endpoint", 2), ("endpoint", 3), ("entropy", 4), ("kl", 2), ("kl", 3)])
def test_stability(signal: str, window: int) -> None:
    """An easy test ends the slow phase as soon as it may be made, an impossible one never."""
    spec = f"slowfast(tau_min=0.5,tau_high=0.9,suffix=full,signal={signal},window={window},k_max=5"
    for bound, slow in (("1e9", window), ("1e-300", 5)):
        found = phases(f"{spec},sigma2={bound})", 20, [3, 4])
        cycles = list(dict.fromkeys(start for start, _ in found))
        lengths = [sum(s for start, s in found if start == cycle) for cycle in cycles[:-1]]
        if signal == "endpoint" and bound != "1e9":
            assert all(length <= slow for length in lengths)  # two equal candidates have no variance at all
        else:
            assert lengths
            assert set(lengths) == {slow}


def test_kmax_forwards_left_out_are_reported() -> None:
    """leave=k_max: forwards that could not commit are skipped, and caches hear of them exactly once."""
    spec = "slowfast(preset=reference,tau_min=0,tau_high=0,k_max=5,block_length=4)"
    request = Request(0, [1, 2], 12, ignore_eos=True)
    skipped = [int(event.ask.skipped[0]) for _, _, event in trail(tiny(), spec, "none", request)]
    assert skipped == [0, 4, 4]
    ages = [int(after.cache.plain.age[0]) for _, after, _ in trail(tiny(), spec, "dllm", request)]
    assert ages == [0, 5, 10]


# --- work ----------------------------------------------------------------------------------------------------------


@combined(apart=("policy", "kept", "shift"), policy=POLICIES, kept=CACHES, shift=SHIFT)
def test_claimed_positions_are_the_rows_computed(policy: str, kept: str, shift: bool) -> None:
    """``Stats.positions`` is what q, k, attention output and feed-forward really see, averaged over the layers."""
    model = tiny(shift)
    with counting(model) as seen:
        (result,) = Model(model, None).generate([5, 6, 7], 12, policy, kept, ignore_eos=True)
    several = registry.policy(policy).branches > 1  # canvases of a row share rectangles, in which there may be gaps
    for kind in LAYERS:
        known = pytest.approx(result.stats.positions)
        assert seen.mean(kind) == known or (several and seen.mean(kind) > result.stats.positions), kind


@combined(  # d2 looks at positions of its own choice, too
    apart=("policy", "kept", "shift"), policy=SIZED, kept=[c for c in CACHES if not c.startswith("d2")], shift=SHIFT
)
def test_the_head_sees_only_asked_positions(policy: str, kept: str, shift: bool) -> None:
    model, asked, more = tiny(shift), 0, 0
    with counting(model) as seen:
        for before, _, _ in trail(model, policy, kept, Request(0, [5, 6, 7], 12)):
            ask, canvas = registry.policy(policy).ask(before.canvas, before.policy), before.canvas
            live = torch.ones_like(ask.window)
            if ask.forks is not None:
                live, canvas = live & ~ask.forks.idle[:, None], ask.forks.canvas
            filled = canvas.response & (canvas.tokens != MASK) & live
            asked += int((ask.window & canvas.masked & live).sum())
            if ask.probe is not None:
                asked += int((ask.probe & ~canvas.masked).sum())
            if ask.score is not None:
                asked += int((ask.score & filled).sum())
            if ask.reread is not None:
                asked += int((ask.reread & filled).sum())
            if ask.beside is not None:  # of these the ones that the cache computes
                more += int((ask.beside & live).sum())
    branches = 2 if registry.policy(policy).guidance else 1
    assert branches * asked <= seen.head <= branches * (asked + more)


def test_dllm_cache_saves_what_it_promises() -> None:
    """Forward by forward: refreshes of prompt and response, layer 0, the share rho, and values of the response."""
    prompt, length, kp, kr, rho = list(range(1, 18)), 21, 5, 3, 0.25
    share = int(rho * length)
    for first in ("full", "adaptive"):
        spec = f"dllm(kp={kp},kr={kr},rho={rho},first_layer={first})"
        model, n = tiny(), 0
        request = Request(0, prompt, length, ignore_eos=True)
        with counting(model) as seen:
            for _, _, event in trail(model, "vanilla(block_length=none)", spec, request):
                whole = n % kr == 0
                base = len(prompt) if n % kp == 0 else 0
                layer0 = base + (length if whole or first == "full" else share)
                others = base + (length if whole else share)
                assert seen.rows["qkv_proj", 0] == seen.rows["gate_up", 0] == layer0
                assert seen.rows["qkv_proj", 1] == seen.rows["down", 1] == others
                assert seen.rows["attn_norm", 1] == others if whole else base + length + others
                assert float(event.work[0]) == (layer0 + others) / 2
                seen.rows = dict.fromkeys(seen.rows, 0)
                n += 1
        assert n == length
    plain = run("vanilla(block_length=none)", prompt, length).work
    assert run("vanilla(block_length=none)", prompt, length, "dllm(kp=50,kr=7,rho=0)").work < plain / 2


@pytest.mark.parametrize("shift", [0, 1], ids=["plain", "shift"])
@pytest.mark.parametrize("policy", ["vanilla(block_length={})", "threshold(tau=0.5,block_length={})"])
def test_block_caches_compute_what_they_promise(policy: str, shift: int) -> None:
    """A block's first forward sees everything, later ones the block (prefix: and what follows). A shifted model also
    needs the position before each mask, so the one before the block while the block's first position is masked.
    """
    prompt, length, block = [1, 2, 3, 4, 5], 14, 4
    total = len(prompt) + length
    for kept in ("dual", "prefix"):
        row = run(policy.format(block), prompt, length, kept, bool(shift))
        expected, tokens = 0, [MASK] * length
        seen: set[int] = set()
        for commit in row.commits:
            start = tokens.index(MASK) // block * block
            size = min(block, length - start) if kept == "dual" else length - start
            expected += size + (shift and tokens[start] == MASK) if start in seen else total
            seen.add(start)
            for position, token in commit:
                tokens[position - len(prompt)] = token
        assert row.work == expected
        assert len(seen) == 4
        assert row.work < run(policy.format(block), prompt, length, "none", bool(shift)).work


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_every_refreshes_every_nth_forward(n: int) -> None:
    """Counted from a row's first, on top of the cache's own refreshes; also with what a policy calls stale."""
    request = Request(0, [1, 2, 3, 4, 5], 13, ignore_eos=True)
    for kept, between in ((f"every(dual,{n})", 13), (f"every(dllm(kp=99,kr=99,rho=0),{n})", 6.5)):
        work = [float(e.work[0]) for *_, e in trail(tiny(), "vanilla(block_length=none)", kept, request)]
        assert work == [18 if i % n == 0 else between for i in range(13)]
    spec, request = "slowfast(tau_min=0.45,tau_high=0.8,k_max=3,suffix=cached)", replace(request, gen_length=24)
    for kept in (f"every(none,{n})", f"every(dual,{n})", f"every(dllm,{n})"):
        work = [float(e.work[0]) for *_, e in trail(tiny(), spec, kept, request)]
        assert all(w == 29 for w in work[::n])


def test_guidance_costs_two_forwards() -> None:
    for kept in ("none", "dual", "dllm(kp=3,kr=2,rho=0.25)"):
        plain = run("vanilla(block_length=4)", [1, 2, 3], 12, kept)
        guided = run("vanilla(block_length=4,cfg_scale=0.5)", [1, 2, 3], 12, kept)
        assert guided.work == 2 * plain.work
        assert guided.nfe == plain.nfe


@combined(  # those left out choose by guided answers
    kinds=("kept", "shift"), kept=[c for c in CACHES if not c.startswith(("d2", "entropy"))], shift=SHIFT
)
def test_guidance_keeps_two_stores(kept: str, shift: bool) -> None:
    """A guided forward is u + (s + 1)(c - u) of two independent runs of the cache, u's with the prompt masked."""
    model, kept_by, scale, seen = tiny(shift), registry.cache(kept), 0.7, []
    request = Request(0, [5, 6, 7, 8], 14, ignore_eos=True)
    plain = free = None
    hook = model.network.head.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    try:
        for before, _, event in trail(model, f"vanilla(block_length=5,cfg_scale={scale})", kept, request):
            canvas = before.canvas
            masked = replace(canvas, tokens=torch.where(canvas.response, canvas.tokens, MASK))
            masked.__dict__.update(masked=canvas.masked, frontier=canvas.frontier)  # the prompt is not to be filled
            plain, free = plain or model.init(canvas, kept_by), free or model.init(masked, kept_by)
            seen.clear()
            common = event.ask, kept_by
            answers = [
                model(each, *common, state, before.sampling, before.record.nfe)
                for each, state in ((canvas, plain), (masked, free))
            ]
            plain, free = (
                replace(a.state, plain=kept_by.note(event.update, a.prediction, a.state.plain)) for a in answers
            )
            logits = seen[1] + (scale + 1) * (seen[0] - seen[1])
            logits[:, MASK] = -torch.inf
            logits[:, LIMIT:] = -torch.inf
            asked = event.confidence[event.confidence > -torch.inf]
            assert torch.allclose(logits.softmax(-1).amax(-1), asked, rtol=1e-6)
    finally:
        hook.remove()


def test_suffixes_cost_what_they_say() -> None:
    """From the second fast forward on, truncate and cached compute up to the end of the span; truncate also forgets
    the rest, cached keeps its keys and values.
    """
    spec = "slowfast(tau_min=0.45,tau_high=0.8,k_max=3,suffix={})"
    request = Request(0, [1, 2, 3], 24, ignore_eos=True)
    for suffix in ("truncate", "cached", "full"):
        shorter = 0
        for before, _, event in trail(tiny(), spec.format(suffix), "none", request):
            end, later = int(before.policy.end[0]), int(before.policy.fast[0]) >= 1
            assert int(event.work[0]) == (end if later and suffix != "full" else 27)
            shorter += later and end < 27
        assert shorter, "no fast phase was long enough to matter"


@cache
def confident(dtype: torch.dtype) -> Denoiser:
    """A model so sure that a float32 softmax saturates."""
    model = tiny(seed=5, dtype=dtype)
    model.network.head.weight.data *= 12
    return model


def test_saturated_confidences_keep_their_order() -> None:
    """In float32 the order of positions that are all but certain is that of float64."""
    rows = [
        decode(confident(dtype), "vanilla(block_length=none)", "none", [Request(0, [1, 2, 3], 16, ignore_eos=True)])[0]
        for dtype in (torch.float64, torch.float32)
    ]
    assert sum(c > 1 - 1e-8 for c in rows[0].confidence.values()) >= 4
    assert rows[0].commits == rows[1].commits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("vanilla", "dual"),
        ("threshold", "none"),
        *(("slowfast(tau_high=0.998,window=1,block_length=32)", kept) for kept in ("none", "dual")),
    ],
)
def test_an_early_stop_changes_no_answer(policy: str, kept: str) -> None:
    """A block is finished before the next is begun: what is filled behind the answer comes too late to matter."""
    lm = unmask.load(dtype="float32")
    prompts = [p.prompt for family in ("word_problem", "record") for p in problems(family, "valid", 1)]
    early, full = (lm.generate(prompts, 96, policy, kept, ignore_eos=full) for full in (False, True))
    for one, other in zip(early, full, strict=True):
        said = one.stats.tokens
        assert 0 < said == other.stats.tokens < 96
        assert one.tokens[:said] == other.tokens[:said]
        assert one.steps[:said] == other.steps[:said]
        assert one.stats.nfe < other.stats.nfe
