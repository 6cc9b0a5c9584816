"""A tiny random model, every registered policy and cache in several variants, what a run of them leaves behind, and the
command line in this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from unmask import registry
from unmask.cli import app
from unmask.core.cache import Cache
from unmask.core.canvas import Canvas, ModelSpec, Update
from unmask.core.config import param
from unmask.core.pick import top
from unmask.core.policy import Policy
from unmask.core.predict import uniform
from unmask.core.protocols import Ask, Plan, Prediction, Sampling
from unmask.core.rows import Counts, Rows, gather, tiles
from unmask.core.state import PER_POSITION, Slab
from unmask.engine.admission import fresh_state
from unmask.engine.loop import State, Step, step
from unmask.engine.outcome import Outcome
from unmask.engine.request import Request as EngineRequest
from unmask.engine.request import SamplingParams
from unmask.engine.scheduler import Engine
from unmask.models.denoiser import Denoiser
from unmask.models.transformer import Architecture, Transformer

ARCH = Architecture(width=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=64, theta=10000.0, eps=1e-6)
MASK, EOS, PAD, LIMIT, CONTEXT = 60, 57, 58, 62, 64
SAMPLED = set(range(LIMIT)) - {MASK}
SPEC = ModelSpec(mask=MASK, eos=(EOS, 59), pad=PAD, vocab=ARCH.vocab, limit=LIMIT, context=CONTEXT)


@lru_cache(maxsize=16)
def tiny(
    shift: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    arch: Architecture = ARCH,
    eos_bias: float = 0.35,
    block: int | None = None,
    whole: bool = False,
) -> Denoiser:
    """A random transformer whose confidences are spread and which says the end of text now and then.

    Weights are float64 by default: the same row computed in another batch differs in the last bits, and in float64 that
    is never enough to change an argmax or the side of a threshold.
    """
    draw = torch.Generator().manual_seed(seed)
    network = Transformer(arch, CONTEXT)
    for name, weight in network.named_parameters():
        if weight.dim() == 2:
            scale = 1.0 if "embed" in name else 1.5 / arch.width**0.5
            weight.data = torch.randn(weight.shape, generator=draw) * scale
            if "qkv" in name:
                weight.data[: arch.width + arch.kv_heads * arch.head_dim] *= 2  # queries and keys: sharp attention
        else:
            weight.data = 1.0 + 0.2 * torch.randn(weight.shape, generator=draw)
    if network.head is not None:
        network.head.weight.data *= 2.5
        network.head.weight.data[EOS] += eos_bias * network.head.weight.data[:8].sum(0) / 8**0.5
    network = network.to(dtype).requires_grad_(False)
    network.make_rotary(CONTEXT, "cpu")
    return Denoiser(network, replace(SPEC, shift=shift, block=block, whole=whole))


VERIFIER = Path(__file__).parent / "verifier"  # random, float64, two ids short of the vocabulary above
POLICY_VARIANTS: dict[str, list[str]] = {
    "vanilla": [
        "vanilla(block_length=4)",
        "vanilla(steps=6,block_length=10)",
        "vanilla(block_length=none,cfg_scale=0.7)",
        "vanilla(block_length=5,remasking=random)",
    ],
    "threshold": [
        "threshold(tau=0.4,block_length=4)",
        "threshold(tau=0.6,block_length=none)",
        "threshold(tau=0.3,block_length=5,steps=9,opening=first,confidence=sampled)",
    ],
    "factor": [
        "factor(f=0.9,block_length=4)",
        "factor(f=1.5,block_length=none,rank=last_too)",
        "factor(f=2,block_length=5,rank=last_not)",
    ],
    "entropy_bound": [
        "entropy_bound(gamma=1.2,block_length=5)",
        "entropy_bound(gamma=3,block_length=none,order=confidence)",
    ],
    "klass": ["klass(tau=0.4,kl=0.3,block_length=5)", "klass(tau=0.5,kl=1,history=1,block_length=none)"],
    "wino": ["wino(tau_in=0.3,tau_out=0.3,block_length=6)", "wino(tau_in=0.5,tau_out=0.5,block_length=30)"],
    "hierarchical": ["hierarchical(tau=0.6,low=0.2,block_length=7)"],
    "credit": ["credit(tau=0.5,block_length=5)"],
    "learn2pd": ["learn2pd(tau=0.6,block_length=5)"],
    "learned": ["learned(temperature=9,block_length=5)", "learned(sample=false,block_length=none)"],
    "saber": ["saber(mu=2,since=commit)", "saber(n=3,mu=3,since=before,block_length=7)", "saber(since=nothing)"],
    "adaptive": [
        "adaptive(threshold(tau=0.6,block_length=none),gain=0.1,low=0.1)",
        "adaptive(slowfast(tau_min=0.3,tau_high=0.5,k_max=3,suffix=full),gain=0.3,target=0.3,low=0.1,high=0.8)",
    ],
    "prophet": [
        "prophet(threshold(tau=0.4,block_length=5),high=2.5,mid=1.5,low=0.8)",
        "prophet(slowfast(tau_min=0.3,tau_high=0.5,k_max=3,suffix=truncate),high=2,mid=2,low=2,answer_start=4,answer_length=3)",
    ],
    "lookahead": [
        "lookahead(threshold(tau=0.4,block_length=none),4)",
        "lookahead(slowfast(tau_min=0.2,tau_high=0.5,k_max=3,suffix=cached,block_length=7),9)",
        "lookahead(wino(tau_in=0.3,tau_out=0.3,block_length=6),3)",
    ],
    "adablock": [
        'adablock(threshold(tau=0.4,block_length=5),tau_end=0.1,reach=0.6,delimiters="3 8 11 20 33 40 50")',
        'adablock(klass(tau=0.4,kl=0.3,block_length=4),tau_end=0,reach=1,delimiters="57 2 9 14 22 30 41 44")',
    ],
    "window": ["window(threshold(tau=0.4,block_length=4))", "window(factor(f=0.9,block_length=6),longest=7)"],
    "multiblock": [
        "multiblock(tau=1.5,block_length=4,add=0.3,ready=0.7)",
        "multiblock(tau=1,block_length=5,add=0,ready=1,least=all)",
    ],
    "lopa": [
        "lopa(multiblock(tau=1.5,block_length=4,add=0.3,ready=0.7),branches=3)",
        "lopa(saber(mu=2,since=commit),branches=4,measure=confidence,share=0.5,weight=0.4)",
        "lopa(klass(tau=0.4,kl=0.3,block_length=5),branches=2,measure=margin)",
    ],
    "verified": [
        "verified(threshold(tau=0.2),drafts=4,block_length=5)",
        "verified(slowfast(tau_min=0.2,tau_high=0.3,k_max=3),drafts=3,block_length=none)",
        "verified(threshold(tau=0.4,block_length=7),drafts=3,block_length=7,rule=policy)",
    ],
    "left_to_right": ["left_to_right(k=2,lookahead=5)"],
    "refine": [
        "refine(share=0.4,iterations=4)",
        "refine(rejecter=count,count=3,iterations=3,block_length=5)",
        "refine(rejecter=disagreement,iterations=5,block_length=7)",
        "refine(rejecter=random,iterations=3,block_length=6)",
        "refine(rejecter=nothing)",
    ],
    "cascade": [
        f'cascade(k=3,window=4,margin=0.5,block_length=6,verifier="{VERIFIER}")',
        f'cascade(k=4,rounds=2,window=5,margin=0.2,block_length=none,verifier="{VERIFIER}")',
        "cascade(order=0,k=3,window=6,margin=0.3)",
    ],
    "sdar": [
        "sdar(tau=0.4,steps=3)",
        "sdar(schedule=static,steps=3,block_length=5)",
        "sdar(schedule=sequential,steps=5)",
    ],
    "rnd1": ["rnd1(steps=5)", "rnd1(steps=9,gamma=2)"],
    "localleap": [
        "localleap(tau=0.5,low=0.3,radius=2,block_length=7)",
        "localleap(tau=0.7,low=0.4,radius=9,block_length=none)",
    ],
    "dawn": [
        "dawn(tau=0.6,induce=0.3,low=0.25,edge=0.08,sink=0.2,layers=1,block_length=7)",
        "dawn(tau=0.5,induce=0.2,low=0.3,edge=0.05,sink=0.15,block_length=30,preset=reference)",
    ],
    "pc_sampler": ["pc_sampler(block_length=5)", "pc_sampler(decay=0.1,most=1,steps=6,block_length=10)"],
    "suffix": [
        "suffix(threshold(tau=0.4,block_length=4),window=3)",
        "suffix(slowfast(tau_min=0.2,tau_high=0.5,k_max=3,suffix=cached,block_length=7),window=2,last=0,decay=2)",
        "suffix(wino(tau_in=0.3,tau_out=0.3,block_length=6),window=4,decay=1)",
    ],
    "mask_ratio": [
        "mask_ratio(threshold(tau=0.5,block_length=5),alpha=0.5)",
        "mask_ratio(suffix(klass(tau=0.4,kl=0.3,block_length=5),window=3),alpha=0.8)",
    ],
    "flexible": [
        "flexible(threshold(tau=0.4,block_length=5),max_length=20,low=0.1,high=0.2,step=2,look=4)",
        "flexible(wino(tau_in=0.3,tau_out=0.3,block_length=6),max_length=17,low=0.2,high=0.3,step=3,look=2,cut=any)",
        "flexible(slowfast(tau_min=0.4,tau_high=0.6,suffix=cached,block_length=7),max_length=19,low=0.1,high=0.15,step=1)",
    ],
    "daedal": [
        "daedal(threshold(tau=0.4,block_length=5),max_length=20,tau_start=0.2,tau_end=0.3,tau_low=0.4,step=3,look=4)",
        "daedal(klass(tau=0.4,kl=0.3,block_length=4),max_length=17,tau_start=0.1,tau_low=0.3,step=2,look=3)",
    ],
    "edit": [
        "edit(threshold(tau=0.4,block_length=5),tau_edit=0.3,max_post_steps=3)",
        "edit(wino(tau_in=0.3,tau_out=0.3,block_length=6),tau_edit=0.4,max_post_steps=0)",
        "edit(slowfast(tau_min=0.2,tau_high=0.5,k_max=3),tau_edit=0.5,max_post_steps=2,penalty=1)",
    ],
    "renoise": [],  # for models without a mask token, see test_renoise
    "apd": [
        f'apd(r=0.4,lookahead=6,verifier="{VERIFIER}")',
        f'apd(r=0.2,lookahead=none,verifier="{VERIFIER}",preset=reference)',
    ],
    "dream": [
        "dream(alg=maskgit_plus)",
        "dream(steps=5,alg=topk_margin)",
        "dream(steps=40,alg=entropy,alg_temp=0.3)",
        "dream(steps=9,alg=origin)",
        "dream(alg=entropy,block_length=5,opening=first)",
    ],
    "slowfast": [
        "slowfast(tau_min=0.2,tau_high=0.5,k_max=3)",
        "slowfast(preset=reference,tau_min=0.3,tau_high=0.5,k_max=3,block_length=6)",
        "slowfast(tau_min=0.3,tau_high=0.5,suffix=truncate,block_length=5)",
        "slowfast(tau_min=0.4,tau_high=0.6,suffix=cached,block_length=7,k_slow=2,k_fast=2)",
        "slowfast(tau_min=0.3,tau_high=0.5,suffix=full)",
        "slowfast(preset=reference_dream,tau_slow=0.3,tau_high=0.5,k_max=3,window=3)",
        "slowfast(tau_min=0.3,tau_high=0.5,signal=kl,sigma2=0.05)",
        "slowfast(tau_min=0.3,tau_high=0.5,signal=entropy,sigma2=0.05,window=3)",
        "slowfast(tau_min=0.3,tau_high=0.5,force_after=2,suffix=truncate)",
    ],
}
CACHE_VARIANTS: dict[str, list[str]] = {
    "dllm": [
        "dllm",
        "dllm(kp=3,kr=2,rho=0.25)",
        "dllm(kp=3,kr=4,rho=0)",
        "dllm(kp=4,kr=4,rho=0,first_layer=adaptive)",
        "dllm(kp=2,kr=3,rho=1,first_layer=all)",
        "dllm(kp=2,kr=3,rho=0.5,first_layer=adaptive)",
    ],
    "trailing": ["trailing(window=3)"],
    "window_cache": [
        "window_cache(refresh=5,before=2,behind=1)",
        "window_cache(refresh=4,before=none,behind=none,last=false)",
        "window_cache(refresh=6,before=3,behind=0,margin=this,last=false)",
    ],
    "entropy_cache": [
        "entropy_cache(tau=2.2,k=3)",
        "entropy_cache(tau=9,k=0,masks=window)",
    ],
    "elastic": ["elastic(gamma=0.99,track=2)", "elastic(gamma=0.97)"],
    "d2": ["d2(k=4,p=0.4,sigma=3,inflate=3)", "d2(k=2,p=0.2,sigma=2,nucleus=within)"],
    "every": ["every(none,2)", "every(dllm,3)", "every(dual,3)", "every(blockwise,2)"],
}


def variants(table: dict[str, str], known: dict[str, list[str]]) -> list[str]:
    """The listed variants of everything registered; the bare name of what is new."""
    return [spec for name in table for spec in known.get(name, [name])]


SHIFT = {"plain": False, "shift": True}
SHIFTS = [pytest.param(value, id=name) for name, value in SHIFT.items()]
AHEAD = [
    "ahead(threshold(tau=0.4),add=0.3)",
    "ahead(slowfast(tau_min=0.2,tau_high=0.5,k_max=3),blocks=3,add=0)",
    "ahead(wino(tau_in=0.3,tau_out=0.3,block_length=6),add=0.5)",
    "ahead(klass(tau=0.4,kl=0.3,history=1),add=0.2)",
]
APART = ("ahead", "assd")  # for models of another kind, see test_blocks and test_assd
POLICIES = variants({name: at for name, at in registry.POLICIES.items() if name not in APART}, POLICY_VARIANTS)
STEPPED = ("vanilla(steps", "pc_sampler(decay=0.1,most=1,steps", "dream(steps")  # shared by blocks of block_length
SIZED = [spec for spec in POLICIES if not registry.policy(spec).resizes]  # responses have the length that is asked for
SINGLE = [spec for spec in SIZED if registry.policy(spec).branches == 1]  # which others may be around
BLOCK_POLICIES = [spec for spec in SIZED if not spec.startswith(STEPPED)]  # of any block length
_EVERY_CACHE = variants(registry.CACHES, CACHE_VARIANTS)
CACHES = [spec for spec in _EVERY_CACHE if "full" in registry.cache(spec).attention]
BLOCK_CACHES = [spec for spec in _EVERY_CACHE if "block" in registry.cache(spec).attention]


@dataclass
class Row:
    """What one row of a run did: ``commits`` of each forward, final ``tokens`` up to its length, ``work``."""

    prompt: list[int]
    commits: list[frozenset[tuple[int, int]]] = field(default_factory=list)
    remasks: list[frozenset[int]] = field(default_factory=list)
    confidence: dict[int, float] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    work: float = 0.0
    finished: int = 0

    @property
    def nfe(self) -> int:
        return len(self.commits)


_kept = lru_cache(maxsize=256)(registry.policy)


def made(policy: str | Policy) -> Policy:
    """A policy; that of a spec keeps what it has loaded from test to test."""
    return _kept(policy) if isinstance(policy, str) else registry.policy(policy)


@dataclass(frozen=True)
class Request:
    """A request whose policy and cache a test gives apart; its fields are those of a request and of its parameters."""

    row: Any
    prompt: Sequence[int]
    gen_length: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    ignore_eos: bool = False
    suppress: Sequence[int] = ()
    fixed: Mapping[int, int] = field(default_factory=dict)
    begin: int | None = None
    stop: tuple[str, ...] = ()
    late_eos: bool = False
    regex: str | None = None
    json_schema: Any = None
    choices: tuple[str, ...] = ()

    def to(self, policy: str | Policy, cache: str | Cache) -> EngineRequest:
        own = {f.name: getattr(self, f.name) for f in fields(SamplingParams) if hasattr(self, f.name)}
        return EngineRequest(self.row, self.prompt, self.gen_length, made(policy), registry.cache(cache),
                             SamplingParams(**own), self.fixed, self.begin)  # fmt: skip


def admit(model: Denoiser, cache: str | Cache, policy: str | Policy, requests: Sequence[Request]) -> State:
    """The state of requests before their first forward pass."""
    return fresh_state(model, [r.to(policy, cache) for r in requests])


def decode(
    model: Denoiser, policy: str | Policy, cache: str | Cache, requests: Sequence[Request], batch_size: int = 99
) -> dict[int, Row]:
    """Run requests and collect each row, checking on the way what must hold in every step."""
    rows = {r.row: Row(list(r.prompt)) for r in requests}
    before: dict[int, list[int]] = {}
    engine = Engine(model, batch_size=batch_size)
    for request in requests:
        engine.add(request.to(policy, cache))
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Outcome):
                assert event.error is None, event.error
                rows[event.request.id].finished += 1
                continue
            check_step(event, before, made(policy).holds or made(policy).resizes)
            written, undone = event.committed(), event.remasked()
            assert not undone or made(policy).remasks, "it claims that it never does"
            for i, row in enumerate(event.rows):
                mine = [c for c in written if c.row == row]
                rows[row].commits.append(frozenset((c.position, c.token) for c in mine))
                rows[row].remasks.append(frozenset(p for r, p in undone if r == row))
                rows[row].confidence.update({c.position: c.confidence for c in mine})
                rows[row].work += float(event.work[i])
                rows[row].tokens = before[row]
    assert all(row.finished == 1 for row in rows.values())
    return rows


def run(
    model: Denoiser, cache: str | Cache, policy: str | Policy, requests: Sequence[Request], batch_size: int
) -> Iterator[Step]:
    """Every step of decoding requests; no request may fail."""
    engine = Engine(model, batch_size=batch_size)
    for request in requests:
        engine.add(request.to(policy, cache))
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Step):
                yield event
            else:
                assert event.error is None, event.error


def drain(engine: Engine) -> Iterator[Outcome]:
    """Step until nothing is left; yields outcomes as they come."""
    while engine.busy:
        yield from (event for event in engine.step() if isinstance(event, Outcome))


def singly(model: Denoiser, policy: str, cache: str, requests: Sequence[Request]) -> dict[int, Row]:
    """Each request in a batch of its own."""
    found: dict[int, Row] = {}
    for request in requests:
        found |= decode(model, policy, cache, [request])
    return found


def assert_same(got: dict[int, Row], expected: dict[int, Row]) -> None:
    """Same commits in the same forwards, same tokens, same work."""
    assert got.keys() == expected.keys()
    for row, one in expected.items():
        assert got[row].commits == one.commits, f"row {row}"
        assert got[row].remasks == one.remasks, f"row {row}"
        assert got[row].tokens == one.tokens, f"row {row}"
        assert got[row].work == pytest.approx(one.work), f"row {row}"


def check_step(event: Step, before: dict[int, list[int]], edits: bool = False) -> None:
    """Only masks are written, inside the window; what is not written stays; ``before`` becomes the rows after it."""
    canvas, mask = event.canvas, event.canvas.spec.mask
    remask = torch.zeros_like(event.update.write) if event.update.remask is None else event.update.remask
    assert not (event.update.write & ~canvas.response).any(), "a policy wrote outside the response"
    aside = event.update.write & ~event.ask.window  # of a policy that changes lengths, tokens that it moves
    assert event.update.grow is not None or not aside.any(), "a policy wrote outside its window"
    assert not ((event.update.write | remask) & canvas.fixed).any(), "a policy touched a fixed token"
    for i, row in enumerate(event.rows):
        tokens = canvas.tokens[i, : int(canvas.length[i])].tolist()
        touched = (event.update.write | remask)[i].tolist()
        for at, token in enumerate(tokens):
            known = before.get(row, tokens)
            old = known[at] if at < len(known) else MASK
            if not touched[at]:
                assert token == old, f"position {at} changed without an update"
            elif not remask[i, at]:
                assert edits or old == mask or row not in before, f"position {at} was overwritten"
                assert token != mask and token < canvas.spec.limit, f"token {token} may not be sampled"
        if int(event.forward[i]) == 0:
            prompt = int(canvas.prompt[i])
            assert tokens[:prompt] == [t for t in tokens[:prompt] if t != mask]
        before[row] = tokens


def laid_out(compute: Tensor, keys: Tensor, work: Tensor) -> list[Rows]:
    """The rectangles of a plan, its counts read from the device."""
    return tiles(compute, keys, Counts(*(column.tolist() for column in Counts.columns(compute, keys, work))))


def forward(model: Denoiser, tokens: Sequence[int], visible: Tensor | None = None, prompt_masked: int = 0) -> Tensor:
    """Logits ``[T, V]`` of one plain pass over one row, written without any cache or policy."""
    ids = torch.tensor([list(tokens)])
    ids[:, :prompt_masked] = model.spec.mask
    every = torch.ones_like(ids, dtype=torch.bool)
    rows = gather(every, every)
    rotary = model.network.rotate_rows(rows)
    hidden = model.network.embed(ids)
    with torch.inference_mode():
        for block in model.network.blocks:
            hidden = hidden + block.attend(*block.qkv(hidden, rotary), visible)
            hidden = hidden + block.mlp(hidden)
        logits = model.network.logits(hidden[0])
    return logits.clone()


def trail(
    model: Denoiser, policy: str | Policy, cache: str | Cache, request: Request
) -> Iterator[tuple[State, State, Step]]:
    """One row's states before and after each forward, and the step."""
    how, kept = made(policy), registry.cache(cache)
    state = admit(model, kept, how, [request])
    while not state.canvas.done.all():
        after, event = step(model, kept, how, state, int(state.record.nfe))
        yield state, after, event
        state = after


@dataclass(frozen=True)
class Written:
    """A cache's state and ``at [B, T]``, the positions that have been carried through the layers."""

    inner: Any
    at: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Poisoned(Cache):
    """A cache whose stores begin with large numbers: whatever attends to them or reuses them goes wrong. Refuses plans
    that attend to positions never computed, or that leave out needed ones.
    """

    cache: Cache = param(None, "the cache")
    name = "poisoned"
    paper = "-"
    attention = ("full", "block", "order")

    @property
    def needs(self) -> frozenset[str]:
        return self.cache.needs

    def stored(self, state: Written) -> bool:
        return self.cache.stored(state.inner)

    def init(self, canvas: Canvas, geometry: Any, like: Tensor) -> Written:
        return Written(poison(self.cache.init(canvas, geometry, like)), torch.zeros_like(canvas.valid))

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: Written) -> tuple[Plan, Written]:
        plan, inner = self.cache.plan(canvas, ask, need, state.inner)
        at = state.at | plan.compute
        spare = torch.zeros_like(need) if ask.optional is None else canvas.sources(ask.optional)
        assert not (need & ~plan.compute & ~spare).any(), "a needed position is not computed"
        assert not (plan.compute & canvas.valid & ~plan.keys).any(), "a computed position cannot be attended to"
        assert not (plan.keys & ~canvas.valid).any(), "padding can be attended to"
        assert not (plan.keys & ~at).any(), "a position never computed is attended to"
        return plan, Written(inner, at)

    def layer(self, index: int, block: Any, hidden: Tensor, rows: Any, state: Written) -> Tensor:
        return self.cache.layer(index, block, hidden, rows, state.inner)

    def note(self, update: Update, prediction: Prediction, state: Written) -> Written:
        return replace(state, inner=self.cache.note(update, prediction, state.inner))


def poison(state: Any) -> Any:
    """Every floating leaf with more than two dimensions, filled."""
    if isinstance(state, Tensor):
        return torch.full_like(state, 1e3) if state.is_floating_point() and state.dim() > 2 else state
    if isinstance(state, Slab):
        state.data.fill_(1e3)
        return state
    if isinstance(state, list):
        return [poison(leaf) for leaf in state]
    if is_dataclass(state):
        return replace(state, **{f.name: poison(getattr(state, f.name)) for f in fields(state)})
    return state


@dataclass(frozen=True)
class ChaosState:
    """``seed [B]`` and ``count [B]``, forwards so far."""

    seed: Tensor
    count: Tensor


@dataclass(frozen=True)
class Chaos(Policy):
    """A policy that asks for anything it may ask for: windows that move at random and may hold no mask, positions that
    leave the input and come back, stale and optional ones, refreshes, skipped forwards, probes, scores; commits some
    and takes some back.
    """

    name = "chaos"
    paper = "-"
    needs = frozenset({"entropy"})
    probes = 5
    remasks = True

    scale: float = param(0.0, "guidance", ge=0)

    @property
    def guidance(self) -> float:
        return self.scale

    def init(self, canvas: Canvas, sampling: Sampling) -> ChaosState:
        return ChaosState(sampling.seed, torch.zeros_like(canvas.prompt))

    def ask(self, canvas: Canvas, state: ChaosState) -> Ask:
        draw = self._draw(canvas, state, 1, 4)
        length = (canvas.length - canvas.prompt).double()
        low = canvas.prompt + (draw[:, 0] * length * 0.9).long()
        high = low + 1 + (draw[:, 1] * length * 0.4).long()
        whole = (state.count % 3 == 2)[:, None]
        inside = (canvas.position >= low[:, None]) & (canvas.position < high[:, None])
        window = canvas.response & (inside | whole)
        prompt = canvas.position < canvas.prompt[:, None]
        return Ask(
            window,
            visible=prompt | window | (self._draw(canvas, state, 2) < 0.8),
            stale=(self._draw(canvas, state, 3) < 0.3) & ~window,
            refresh=draw[:, 2] < 0.1,
            skipped=(draw[:, 3] * 3).long(),
            probe=self._probed(canvas, state),
            score=self._draw(canvas, state, 6) < 0.4,
            optional=window & (self._draw(canvas, state, 7) < 0.6),
        )

    def decide(self, canvas: Canvas, prediction: Prediction, state: ChaosState) -> tuple[Update, ChaosState]:
        write = top(prediction.confidence, 1 + state.count % 2)
        length = canvas.length - canvas.prompt
        lost = canvas.response & ~canvas.masked & ~canvas.fixed & (canvas.tokens != canvas.spec.mask)
        doubtful = self._probed(canvas, state) & (prediction.probe < 0.3)
        doubtful = doubtful | (prediction.score > 0) & (prediction.score < 0.3)
        lost = lost & (self._draw(canvas, state, 4) < torch.where(doubtful, 0.3, 0.1)) & (state.count < length)[:, None]
        return Update(write, prediction.token, lost), ChaosState(state.seed, state.count + 1)

    def _probed(self, canvas: Canvas, state: ChaosState) -> Tensor:
        """At most five positions of the response."""
        some = canvas.response & (self._draw(canvas, state, 5) < 0.4)
        return some & (some.cumsum(1) <= self.probes)

    @staticmethod
    def _draw(canvas: Canvas, state: ChaosState, kind: int, size: int | None = None) -> Tensor:
        """``[B, T]`` (or ``[B, size]``) noise of a row's forward and the position alone."""
        where = torch.full_like(state.count, -kind)
        return uniform(state.seed, where, state.count, size or canvas.tokens.shape[1])


def cli(*args: object, **more: Any) -> Any:
    """Run ``unmask ARGS`` in this process."""
    return CliRunner().invoke(app, list(map(str, args)), prog_name="unmask", **more)


def fine(result: Any) -> str:
    """The standard output of a run that had nothing to complain of."""
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return str(result.stdout)


def lines(text: str) -> list[Any]:
    """The values of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]
