"""The engine: whatever enters, fails or is aborted, every request gets what it gets alone, and ends once."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import CACHES, MASK, POLICIES, SHIFT, VERIFIER, Request, admit, drain, tiny
from pairwise import combined
from refusals import refuses
from unmask import RequestError, registry
from unmask.core.state import row_bytes, slabs
from unmask.engine.admission import fresh_state
from unmask.engine.loop import Step, step
from unmask.engine.outcome import Outcome
from unmask.engine.scheduler import Engine
from unmask.models.denoiser import Denoiser

POISON = 63  # an id that prompts may have and that is never generated; its embedding is no number
HOW = [
    "vanilla(block_length=4)",
    "threshold(tau=0.4,block_length=4)",
    "klass(tau=0.4,kl=0.3,block_length=5)",
    "wino(tau_in=0.3,tau_out=0.3,block_length=6)",
    "credit(tau=0.5,block_length=5)",
    "saber(mu=2,since=commit)",
    "dream(steps=5,alg=topk_margin)",
    "slowfast(tau_min=0.2,tau_high=0.5,k_max=3)",
    "slowfast(tau_min=0.4,tau_high=0.6,suffix=cached,block_length=7,k_slow=2,k_fast=2)",
    "lookahead(threshold(tau=0.4,block_length=none),4)",
    "adaptive(threshold(tau=0.6,block_length=none),gain=0.1,low=0.1)",
    f'apd(r=0.4,lookahead=6,verifier="{VERIFIER}")',
]
KEPT = ["none", "dual", "prefix", "dllm(kp=3,kr=2,rho=0.25)", "d2(k=4,p=0.4,sigma=3)", "trailing(window=3)",
        "every(dual,3)"]  # fmt: skip


@cache
def model() -> Denoiser:
    """Float32, with an embedding that is not finite."""
    one = tiny(dtype=torch.float32)
    network = one.network
    weight = network.embed.weight.detach().clone()
    weight[POISON] = torch.nan
    network.embed.weight = torch.nn.Parameter(weight, requires_grad=False)
    return Denoiser(network, one.spec)


@cache
def alone(policy: str, kept: str, prompt: tuple[int, ...], length: int, hot: float, seed: int, eos: bool) -> Outcome:
    engine = Engine(model())
    engine.add(Request(0, prompt, length, temperature=hot, seed=seed, ignore_eos=eos).to(policy, kept))
    (outcome,) = drain(engine)
    return outcome


class Fuzz(RuleBasedStateMachine):
    """Add with any policy, cache, parameters and lengths; abort; step; rows that are poisoned; a budget."""

    @initialize(size=st.integers(1, 5), budget=st.sampled_from([None, 1 << 15, 1 << 20]))
    def begin(self, size: int, budget: int | None) -> None:
        self.engine = Engine(model(), batch_size=size, memory=budget)
        self.asked: dict[int, tuple[Any, ...]] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.aborted: set[int] = set()
        self.poisoned: set[int] = set()
        self.held: list[weakref.ref[Any]] = []

    @rule(
        how=st.sampled_from(HOW),
        kept=st.sampled_from(KEPT),
        prompt=st.lists(st.integers(0, 50), min_size=1, max_size=12),
        length=st.integers(1, 14),
        hot=st.sampled_from([0.0, 0.0, 1.0]),
        eos=st.booleans(),
    )
    def add(self, how: str, kept: str, prompt: list[int], length: int, hot: float, eos: bool) -> None:
        number = len(self.asked)
        given = (how, kept, tuple(prompt), length, hot, number % 3, eos)
        request = Request(number, prompt, length, temperature=hot, seed=number % 3, ignore_eos=eos).to(how, kept)
        if self.engine.memory is not None and row_bytes(fresh_state(model(), [request])) > self.engine.memory:
            with pytest.raises(RequestError):
                self.engine.add(request)
            return
        self.engine.add(request)
        self.asked[number] = given

    @rule(how=st.sampled_from(HOW[:-1]), kept=st.sampled_from(KEPT), length=st.integers(1, 8))
    def poison(self, how: str, kept: str, length: int) -> None:
        number = len(self.asked)
        request = Request(number, [1, POISON, 2], length).to(how, kept)
        try:
            self.engine.add(request)
        except RequestError:
            return
        self.asked[number] = ()
        self.poisoned.add(number)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        open_ = sorted(self.asked.keys() - self.outcomes.keys() - self.aborted)
        if open_:
            number = data.draw(st.sampled_from(open_))
            self.engine.abort(number)
            self.aborted.add(number)

    @rule(times=st.integers(1, 6))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.step()

    def step(self) -> None:
        for event in self.engine.step():
            if isinstance(event, Step):
                assert not self.aborted & set(event.rows), "a row outlived its abort"
                assert not set(event.rows) & self.outcomes.keys(), "a row outlived its end"
                continue
            number = event.request.id
            assert number not in self.outcomes, "ended twice"
            self.outcomes[number] = event
            self.judge(number, event)
        for group in self.engine._groups:
            self.held += [weakref.ref(slab) for slab in slabs(group.state)]

    def judge(self, number: int, outcome: Outcome) -> None:
        if number in self.aborted:
            assert outcome.finish_reason == "abort"
        elif number in self.poisoned:
            assert outcome.finish_reason == "error" and "float32" in str(outcome.error)
            assert "embedding" in str(outcome.error)
            assert outcome.nfe == 1, "forward passes were wasted"
        else:
            expected = alone(*self.asked[number])
            assert (outcome.tokens, outcome.steps) == (expected.tokens, expected.steps)
            assert (outcome.finish_reason, outcome.nfe) == (expected.finish_reason, expected.nfe)
            assert outcome.finish_reason in ("eos", "length") and outcome.error is None

    @invariant()
    def within_bounds(self) -> None:
        if hasattr(self, "engine"):
            assert self.engine.running <= self.engine.batch_size
            if self.engine.memory is not None and self.engine.running > 1:
                held = (slab for group in self.engine._groups for slab in slabs(group.state))
                assert sum(slab.capacity * slab.row_bytes for slab in held) <= self.engine.memory

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.busy:
            self.step()
        assert self.outcomes.keys() == self.asked.keys()
        assert (self.engine.running, self.engine.waiting) == (0, 0)
        self.engine._groups.clear() if self.engine._groups else None
        gc.collect()
        assert not any(one() is not None for one in self.held), "memory is still held"


Fuzz.TestCase.settings = settings(max_examples=25, stateful_step_count=14, deadline=None)
TestFuzz = pytest.mark.slow(Fuzz.TestCase)


# --- what waits for the device


class Waits(TorchDispatchMode):
    """Counts operators whose result the host must read, or whose shape depends on data."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and isinstance(args[1], (list, tuple)) and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )  # fmt: skip
        self.count[name] += name in self.NAMES or by_mask
        return func(*args, **(kwargs or {}))


@combined(
    kinds=("policy", "shift"),
    apart=("policy", "kept"),
    policy=[p for p in POLICIES if "verifier=" not in p and "(klass" not in p],  # own passes; logits that are cut out
    kept=CACHES,
    shift=SHIFT,
)
def test_the_host_waits_twice_in_a_forward_pass(
    policy: str, kept: str, shift: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the policy; a list made of a tensor counts as well."""
    reading = torch.Tensor.tolist
    lists: list[int] = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(1) or reading(tensor))
    requests = [Request(i, [1] * (i + 2), 12 + i, ignore_eos=True, temperature=0.5 * i) for i in range(3)]
    how, cache_ = registry.policy(policy), registry.cache(kept)
    state = admit(tiny(shift), cache_, how, requests)
    state, _ = step(tiny(shift), cache_, how, state, 0)  # what is read once: learned weights
    for index in range(1, 4):
        lists.clear()
        with Waits() as waits:
            state, _ = step(tiny(shift), cache_, how, state, index)
        assert len(lists) + waits.count.total() <= 2, (len(lists), waits.count)


def test_waits_are_seen() -> None:
    """The counter above can fail."""
    some = torch.tensor([True, False])
    for reads in (lambda: bool(some.any()), some.nonzero, lambda: torch.arange(2)[some], lambda: int(some[0])):
        with Waits() as waits:
            reads()
        assert waits.count.total() >= 1


# --- rows that enter and leave


def test_memory_is_allocated_once_and_the_canvas_narrows() -> None:
    """A long prompt leaves a narrow canvas behind; slabs stay where they are while rows come and go."""
    engine = Engine(tiny(), batch_size=3)
    engine.add(Request("long", [1] * 40, 2).to("vanilla", "dual"))
    for i in range(6):
        engine.add(Request(i, [1 + i, 2], 5 + i % 2, ignore_eos=True).to("vanilla", "dual"))
    widths, places = [], set()
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Step):
                widths.append(event.canvas.tokens.shape[1])
        places |= {slab.data.data_ptr() for group in engine._groups for slab in slabs(group.state)}
    assert widths[0] == 42
    assert max(widths[3:]) == 8
    assert len(places) == 2 * tiny().layers, "keys or values have moved"


def test_a_budget_admits_what_fits() -> None:
    one = row_bytes(fresh_state(tiny(), [Request(0, [1] * 6, 10).to("vanilla", "dual")]))
    engine = Engine(tiny(), memory=2 * one)
    for i in range(5):
        engine.add(Request(i, [1] * 6, 10, ignore_eos=True).to("vanilla", "dual"))
    running = []
    while engine.busy:
        engine.step()
        running.append(engine.running)
    assert max(running) == 2
    with pytest.raises(RequestError) as error:
        engine.add(Request("big", [1] * 40, 20).to("vanilla", "dllm"))
    assert error.value.row == "big" and "MiB" in str(error.value) and "dllm" in str(error.value)


def test_groups_take_turns() -> None:
    engine = Engine(tiny())
    for i, policy in enumerate(["vanilla", "threshold", "slowfast"]):
        engine.add(Request(i, [1, 2], 9, ignore_eos=True).to(policy, "none"))
    first = [event.rows for _ in range(6) for event in engine.step() if isinstance(event, Step)]
    assert sorted(first[:3]) == [(0,), (1,), (2,)]
    assert first[:3] == first[3:6] or len(set(first[3:6])) == len(first[3:6])


class Broken:
    """What a policy of somebody else may do."""


def test_a_policy_that_raises_ends_its_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny())
    kind = type(registry.policy("factor"))
    engine.add(Request("bad", [1, 2], 5).to("factor", "none"))
    engine.add(Request("good", [1, 2], 5, ignore_eos=True).to("vanilla", "none"))
    monkeypatch.setattr(kind, "decide", lambda *args: (_ for _ in ()).throw(RuntimeError("a bug of its own")))
    found = {outcome.request.id: outcome for outcome in drain(engine)}
    assert found["bad"].finish_reason == "error" and "a bug of its own" in str(found["bad"].error)
    assert found["good"].finish_reason == "length"


def test_an_id_in_use_is_refused() -> None:
    engine = Engine(tiny())
    engine.add(Request("a", [1], 4).to("vanilla", "none"))
    with pytest.raises(RequestError, match="id"):
        engine.add(Request("a", [1], 4).to("vanilla", "none"))
    list(drain(engine))
    engine.add(Request("a", [1], 4).to("vanilla", "none"))
    assert len(list(drain(engine))) == 1


def test_aborting_what_is_unknown_or_waiting() -> None:
    engine = Engine(tiny(), batch_size=1)
    engine.abort("nobody")
    for name in "ab":
        engine.add(Request(name, [1], 4, ignore_eos=True).to("vanilla", "none"))
    engine.abort("b")
    found = {outcome.request.id: outcome for outcome in drain(engine)}
    assert (found["b"].finish_reason, found["b"].nfe, found["b"].tokens) == ("abort", 0, [MASK] * 4)
    assert found["a"].finish_reason == "length"


def test_times_do_not_count_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake clock that ticks one second per reading, and a caller that takes an hour between steps."""
    now = [0.0]

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("time.perf_counter", tick)
    engine = Engine(tiny())
    engine.add(Request(0, [1, 2], 3, ignore_eos=True).to("vanilla", "none"))
    inside, seconds = 0.0, []
    outcome = None
    while engine.busy:
        before = now[0]
        for event in engine.step():
            if isinstance(event, Step):
                seconds.append(event.seconds)
                assert 0 < event.model_seconds < event.seconds < now[0] - before
            else:
                outcome = event
        inside += now[0] - before
        now[0] += 3600.0
    assert outcome is not None
    assert sum(seconds) < outcome.seconds <= inside
    assert outcome.first_token_seconds is not None and outcome.first_token_seconds <= outcome.seconds


def test_threads_share_a_model() -> None:
    """Several engines on one model from several threads: each request as it is alone."""
    requests = [Request(i, [1 + i, 2], 10 + i, ignore_eos=True) for i in range(4)]
    settings_ = [("threshold(tau=0.4,block_length=4)", "dual"), ("slowfast(tau_min=0.2,tau_high=0.5,k_max=3)", "dllm")]

    def decode(policy: str, kept: str) -> list[list[int]]:
        engine = Engine(tiny(), batch_size=2)
        for request in requests:
            engine.add(request.to(policy, kept))
        found = {outcome.request.id: outcome.tokens for outcome in drain(engine)}
        return [found[i] for i in range(4)]

    expected = [decode(*one) for one in settings_]
    got: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: decode(*settings_[i % 2])})) for i in range(6)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: expected[i % 2] for i in range(6)}


def test_late_ends_of_text_are_committed_last() -> None:
    """No end of text is committed while another token could be; without ``late_eos`` some are."""
    plain, model = Request(0, [20, 21], 14), tiny(eos_bias=2.0)

    def early(policy: str, late: bool) -> list[bool]:
        engine, found = Engine(model), list[bool]()
        for row, prompt in enumerate(([20, 21], [3, 1, 4], [7], [9, 9, 2, 30])):
            engine.add(replace(plain, row=row, prompt=prompt, late_eos=late).to(policy, "none"))
        while engine.busy:
            for event in engine.step():
                if isinstance(event, Step):
                    open_, ends = event.confidence > -torch.inf, event.canvas.is_eos(event.update.token)
                    written = event.update.write
                    found += ((ends & written).any(1) & (~ends & open_ & ~written).any(1)).tolist()
        return found

    for policy in (
        "vanilla(block_length=none)",
        "threshold(tau=0.4,block_length=none)",
        "sdar(schedule=sequential)",
        "sdar(schedule=sequential,steps=4)",
    ):
        assert not any(early(policy, True)), policy
        assert any(early(policy, False)), policy
    for policy in ("left_to_right", f'edit(apd(verifier="{VERIFIER}"))'):
        with refuses(RequestError, "late_eos"):
            Engine(model).add(replace(plain, late_eos=True).to(policy, "none"))
