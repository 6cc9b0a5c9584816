"""What is measured, with clocks that tick by hand and planted values: a changed constant or a lost call fails here."""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

import unmask
from clocks import Clock, ticks
from helpers import cli, tiny
from unmask import registry
from unmask.core import heap
from unmask.core.canvas import Canvas
from unmask.core.protocols import Prediction
from unmask.engine import loop
from unmask.engine.loop import Step
from unmask.evaluation import bound, memory
from unmask.evaluation.model import UnmaskLM
from unmask.measure import betting, candidates, machine, run, tune
from unmask.measure.problems import Item, Source, source
from unmask.measure.run import Batch, Setting
from unmask.measure.summary import summarise, tallies
from unmask.models import denoiser

CPU = torch.device("cpu")
PLANS = [Setting(f"threshold(tau=0.{i})", "none", 64) for i in range(1, 5)]


# --- the order in which settings take turns


def turns(seed):
    batches = run.order(PLANS, [Source("one", [Item("a", bool)] * 40)], seed)
    return [tuple(PLANS.index(b.setting) for b in batches[at : at + 4]) for at in range(0, 160, 4)]


def test_settings_take_turns_in_random_order():
    found = turns(0)
    assert all(sorted(turn) == [0, 1, 2, 3] for turn in found)
    assert len(set(found)) > 12, "24 orders there are, 40 were drawn"
    for place in range(4):
        often = Counter(turn[place] for turn in found)
        assert min(often[i] for i in range(4)) >= 3, "each is at each place now and then"
    assert found == turns(0)
    assert found != turns(1)


def planted(batch, timed=True):
    """A line of results: right are all but the first, forward passes by setting."""
    rate = 1 + int(batch.setting.policy.partition("0.")[2][:1] or 0)
    wrong = batch.first == 0 and batch.setting.policy != "vanilla"
    return {"correct": [0 if wrong else 1] * batch.n, "digest": ["d"] * batch.n, "nfe": [12 / rate] * batch.n,
            "positions": [12 / rate] * batch.n, "tokens": [10] * batch.n, "seconds": 1 / rate}  # fmt: skip


def test_the_search_takes_turns_in_random_order():
    goal = candidates.Goal(0.9, 0.1, 40, 60, 64, batch_size=1)
    seen = []

    def decode(batch, timed):
        seen.append(batch.setting)
        return planted(batch)

    slow = [Setting(f"factor(f={i})", "none", 64) for i in range(3)]  # none is much faster than another
    tune.search(decode, goal, slow, Source("one", [Item("a", bool)] * 40), lambda *_: None)
    found = [tuple(seen[at : at + 4]) for at in range(0, 160, 4)]
    assert all(set(turn) == {goal.vanilla, *slow} for turn in found)
    assert len(set(found)) > 12


# --- medians


def test_figures_take_the_median_of_what_scatters():
    """Three batches each, whose median is neither mean nor largest nor smallest."""
    run_ = {"kind": "run", "run": "r"}
    lines = [run_]
    for policy, seconds in (("vanilla", [8.0, 8.0, 8.0]), ("threshold", [4.0, 2.0, 0.5])):
        for at, taken in enumerate(seconds):
            key = {"policy": policy, "cache": "none", "gen_length": 64, "batch_size": 1, "eos_stop": True,
                   "temperature": 0.0, "task": "t", "split": None, "seed": 0, "first": at, "n": 1}  # fmt: skip
            lines.append({"kind": "batch", "run": "r", "key": key, "correct": [1], "nfe": [4], "tokens": [8],
                          "positions": [4], "digest": ["d"], "first_token": [[0.1, 0.2, 0.9][at]], "seconds": taken,
                          "cpu_seconds": taken, "model_seconds": taken / 2, "peak_bytes": [5, 7, 6][at]})  # fmt: skip
    _, fast = summarise(tallies(lines))
    assert fast.first_token == 0.2
    assert fast.speedup_median == 4
    assert fast.speedup == pytest.approx(24 / 6.5)
    assert fast.spread == (3, 10)  # of 2, 4 and 16
    assert fast.peak_bytes == 7
    assert fast.outside == 0.5


def test_tuning_compares_medians_of_batches_and_means_of_counts():
    def rows(seconds, nfe):
        return [{"correct": [1], "digest": ["d"], "tokens": [12], "seconds": s, "nfe": [n], "positions": [3 * n]}
                for s, n in zip(seconds, nfe, strict=True)]  # fmt: skip

    vanilla, other = rows([6.0, 6.0, 6.0], [30, 30, 30]), rows([6.0, 3.0, 1.0], [3, 4, 8])
    speeds = {}
    for objective in candidates.OBJECTIVES:
        goal = candidates.Goal(0.1, 0.1, 3, 60, 64, objective=objective)
        speeds[objective] = tune.compare(goal, PLANS[0], vanilla, other).speed
    assert speeds == {"tokens_per_second": 2, "nfe": 6, "positions": 6}


# --- memory


def test_the_peak_is_of_each_batch_alone(monkeypatch, tmp_path):
    """It is reset before a batch is decoded, and read after."""
    clear, states = tmp_path / "clear_refs", []
    clear.write_text("")
    monkeypatch.setattr(machine, "_CLEAR_REFS", clear)
    monkeypatch.setattr(run, "served", lambda *_: (states.append(clear.read_text()), ([], 0.0, {}))[1])
    monkeypatch.setattr(run, "_requests", lambda *_: [])
    monkeypatch.setattr(run, "peak", lambda device: 10 * len(states))
    problems = Source("none", [])
    rows = []
    for _ in range(2):
        rows.append(run.decode(unmask.load(), Batch(PLANS[0], problems, 0, 0)))
        assert states[-1] == "5", "proc(5): 5 resets the peak"
        clear.write_text("")
    assert [row["peak_bytes"] for row in rows] == [10, 20]


@pytest.mark.skipif(not machine._CLEAR_REFS.exists(), reason="no /proc here")
def test_the_systems_peak_is_reset():
    if not machine.reset_peak(CPU):
        pytest.skip("this system does not let a process reset its peak")
    before = machine.peak(CPU)
    held = torch.ones(50_000_000)  # 200 MB
    high = machine.peak(CPU)
    assert high > before + 150_000_000
    del held
    assert machine.peak(CPU) > before + 150_000_000, "a peak stays"
    machine.reset_peak(CPU)
    assert machine.peak(CPU) < high - 100_000_000


def test_where_the_peak_cannot_be_reset_it_is_not_known(monkeypatch, tmp_path):
    """As in hardened containers: the batch counts, the note is on standard error."""
    monkeypatch.setattr(machine, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    done = cli("bench", "-p", "threshold", "--baseline", "-", "-t", "sudoku", "-n", 2, "--gen-length", 8, "-o",
               tmp_path / "r.jsonl", "--json")  # fmt: skip
    assert done.exit_code == 0
    assert '"peak_bytes": null' in done.stdout
    assert "peak memory is not known" in done.stderr and done.stderr.count("\n") == 1


def test_freed_memory_is_kept(monkeypatch):
    """The C library is told two limits: what stays at the top of the heap, what may come from the heap."""
    told = []
    library = SimpleNamespace(mallopt=lambda *given: told.append(given))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(heap.sys, "platform", "linux")
    heap.keep_freed()
    assert sorted(told) == [(-3, 32 << 20), (-1, 1 << 30)]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h


def test_logits_of_likelihoods_are_bounded(monkeypatch):
    """Masked positions of one forward pass, however many rows there could be; the values stay."""
    model, lines = tiny(), []
    pairs = [bound.Pair((1, 2), tuple(range(3, 3 + n))) for n in (6, 5, 4)]
    whole = dict(bound.bounds(model, pairs, 63, 0, 99))
    monkeypatch.setattr(bound, "_LOGITS_AT_ONCE", 12 * model.network.arch.vocab)
    real = bound._answer

    def answer(*given):
        made = real(*given)
        lines.append(len(made.logits))
        return made

    monkeypatch.setattr(bound, "_answer", answer)
    found = dict(bound.bounds(model, pairs, 63, 0, 99))
    assert 8 < max(lines) <= 12
    for at, one in whole.items():
        assert found[at].value == pytest.approx(one.value, abs=1e-9)


def test_logits_of_decoding_are_bounded(monkeypatch):
    """Positions per call of the head, whatever the policy needs with them; the tokens stay."""
    lm, lines = unmask.load(), []
    vocab = lm.denoiser.network.arch.vocab
    whole = type(lm.denoiser.network).logits
    monkeypatch.setattr(
        type(lm.denoiser.network), "logits", lambda *given: (lines.append(len(given[1])), whole(*given))[1]
    )
    before = lm.generate("Hi", 32, "vanilla", "none", seed=0)[0].tokens
    assert max(lines) == 32
    monkeypatch.setattr(denoiser, "_LOGITS_AT_ONCE", 8 * vocab)
    lines.clear()
    assert lm.generate("Hi", 32, "vanilla", "none", seed=0)[0].tokens == before
    assert 1 <= max(lines) <= 8


def test_the_bounds_of_logits_in_float32():
    assert bound._LOGITS_AT_ONCE * 4 == 512 << 20
    assert denoiser._LOGITS_AT_ONCE * 4 == 256 << 20


# --- the engine's seconds


def test_seconds_of_a_response_are_those_in_the_engine(monkeypatch):
    """Forward passes take two seconds each; what the consumer does with an event, or before the first, takes none."""
    clock, lm = ticks(monkeypatch, 2.0), unmask.load()
    prompts = [item.prompt for item in source("record", 3, "valid").items]
    clock.now += 300.0
    requests = lm.requests(prompts, [8, 24, 16], "vanilla", "none", ignore_eos=True)
    found, passes = {}, 0
    for event in lm.run(requests, batch_size=2):
        clock.now += 50.0
        if isinstance(event, Step):
            passes += 1
        else:
            found[event.request.id] = event, lm.result(event).stats
    clock.now += 50.0
    assert passes == 24  # the third enters as the first leaves, in the ninth forward pass
    for at, nfe in ((0, 8), (1, 24), (2, 16)):
        outcome, stats = found[at]
        assert (outcome.nfe, outcome.seconds, stats.seconds) == (nfe, 2.0 * nfe, 2.0 * nfe)
        assert stats.tokens_per_second == stats.tokens / stats.seconds
        assert outcome.first_token_seconds in {2.0 * i for i in range(1, nfe + 1)}


def test_seconds_of_a_step_are_its_own(monkeypatch):
    """Two seconds in the policy, five in the network."""
    clock = Clock()
    for module in (loop, denoiser):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.read))
    lm, policy = unmask.load(), registry.policy("vanilla")
    whole = type(lm.denoiser.network).logits
    monkeypatch.setattr(type(lm.denoiser.network), "logits", lambda *given: (clock.wait(5.0), whole(*given))[1])
    decide = type(policy).decide
    monkeypatch.setattr(type(policy), "decide", lambda *given: (clock.wait(2.0), decide(*given))[1])
    for step in lm.stream("Hi", 4, policy, "none"):
        assert (step.seconds, step.model_seconds) == (7.0, 5.0)
        clock.wait(100.0)


# --- the clock of evaluations


def test_the_seconds_of_answers_are_those_of_decoding(monkeypatch):
    """By a clock that stands still but for what decodes: nothing before the first answer is lost, or added."""
    now = [1000.0]
    monkeypatch.setattr(memory, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    made = UnmaskLM(gen_length=16, chat=True, batch_size=1, policy="vanilla")
    prompts = [item.prompt for item in source("record", 3, "valid").items]
    real = made.lm.run

    def slow(*given):
        for event in real(*given):
            now[0] += 2.0 * isinstance(event, Step)
            yield event

    monkeypatch.setattr(made.lm, "run", slow)
    asked = [
        Instance("generate_until", {}, (prompt, {"until": []}), 0, ("t", i, 1)) for i, prompt in enumerate(prompts)
    ]
    made.generate_until(asked, True)
    assert [cost["wall"] for cost in made.memory.costs["t"]] == [2.0 * cost["nfe"] for cost in made.memory.costs["t"]]
    now[0] += 500.0  # scoring, loading: nobody decodes
    more = [Instance("generate_until", {}, (prompt, {"until": []}), 0, ("u", i, 1)) for i, prompt in enumerate("ab")]
    made.generate_until(more, True)
    speed = made.memory.speed()["u"]
    assert speed["seconds"] == pytest.approx(2.0 * speed["nfe"] * 2)


# --- the constants of tuning


def found(speed, lost=0, differ=0, nfe=10.0):
    return tune.Found(Setting(f"threshold(tau={speed})", "none", 32), 60, lost, 0, differ, speed, nfe)


@pytest.mark.parametrize(
    ("other", "speed", "falls"),
    [
        ({}, 2.99, False),  # 1.5 times as fast, no more risk
        ({}, 3.0, True),
        ({"nfe": 9.0}, 9.99, False),  # fewer forward passes, less sure: 5 times as fast
        ({"nfe": 9.0}, 10.0, True),
        ({"differ": 1}, 100.0, False),  # more risk: never
    ],
)
def test_who_falls_back(other, speed, falls):
    assert tune._falls_back(found(2.0), [found(speed, **other)], 0.5) is falls


def test_who_loses_too_much_beyond_doubt_falls_back():
    edge = next(lost for lost in range(60) if tune.paired_interval(lost, 0, 60)[0] > 0.1)
    assert tune._falls_back(found(2.0, lost=edge), [], 0.1) is True
    assert tune._falls_back(found(2.0, lost=edge - 1), [], 0.1) is False


@pytest.mark.parametrize(("speed", "kept"), [(1.049, False), (1.05, True)])
def test_a_step_in_speed_is_worth_a_test(speed, kept):
    goal = candidates.Goal(0.01, 0.1, 60, 600, 32)
    assert bool(tune.front([found(speed)], goal)) is kept
    ranked = tune.front([found(2.0), found(2.0 * speed, differ=2)], goal)
    assert (len(ranked) == 2) is kept


@pytest.mark.parametrize(("speed", "n"), [(2.399, 1), (2.4, 2)])
def test_of_equally_safe_ones_some_apart_are_kept(speed, n):
    goal = candidates.Goal(0.01, 0.1, 60, 600, 32)
    ranked = tune.front([found(2.0, nfe=9.5), found(speed, nfe=9.0)], goal)
    assert len(ranked) == n


def test_the_plan_supposes_what_it_says():
    """Just below the goal, with one problem left: the chance is that of no loss, or of a gain."""
    epsilon, level, n = 0.1, 0.05, 20
    late = 1 - 0.3 / n  # a rejection n problems later is worth 0.3 less
    for gains in (False, True):
        plan = betting.plan(epsilon, level, n, gains)
        assert plan.chance[n - 1, -1] == 1
        assert plan.chance[n - 1, -2] == pytest.approx(late * (1 - 0.3 * epsilon), rel=1e-5)
        most = 1 / (1 - epsilon)
        step = plan.wealth[1] - plan.wealth[0]
        far = plan.wealth + math.log1p(most * epsilon) < plan.goal - step  # even without a loss
        near = plan.wealth + math.log1p(most * (1 + epsilon)) >= plan.goal  # with a gain
        at = int(np.flatnonzero(far & near)[-1])
        assert plan.chance[n - 1, at] == pytest.approx(late * 0.1 * epsilon * gains, rel=1e-5, abs=1e-12)


def test_it_gives_up_when_the_chance_is_below_one_in_a_hundred():
    plan = betting.plan(0.1, 0.05, 80, True)
    ends = 0
    for seed in range(40):
        losses = np.random.default_rng(seed).choice([-1, 0, 1], size=80, p=[0.05, 0.7, 0.25]).tolist()
        end = betting.verdict(plan, losses)
        _, chance = betting.wealth(plan, np.array([losses]))
        before = chance[0, : end.seen - 1]
        assert (before >= 0.01).all()
        if not end.passed and end.seen < 80:
            assert chance[0, end.seen - 1] < 0.01
            ends += 1
    assert ends > 10


# --- Saber


def test_no_rounding_error_ranks_what_is_taken_back():
    """Two scores have fallen alike, the second by a last bit more: the first goes."""
    policy = registry.policy("saber(n=2,mu=8)")
    canvas = Canvas.blank([[5]], [6], tiny().spec, eos_stop=False)
    shape = canvas.tokens.shape
    tokens = canvas.tokens.clone()
    tokens[0, 1:3] = 7
    canvas = replace(canvas, tokens=tokens)
    confidence = torch.full(shape, -torch.inf, dtype=torch.float64)
    confidence[0, 3:] = torch.tensor([0.9, 0.8, 0.1, 0.1])
    score = torch.zeros(shape, dtype=torch.float64)
    score[0, 1:3] = torch.tensor([0.5, 0.5 - 2e-12], dtype=torch.float64)
    state = replace(policy.init(canvas, None), commit=torch.zeros(shape, dtype=torch.float64))
    state.commit[0, 1:3] = 0.7
    prediction = Prediction(token=torch.full(shape, 9), confidence=confidence, score=score)
    update, _ = policy.decide(canvas, prediction, state)
    assert update.remask is not None
    assert update.remask[0].nonzero()[:, 0].tolist() == [1]
    score[0, 2] = 0.4
    update, _ = policy.decide(canvas, prediction, state)
    assert update.remask[0].nonzero()[:, 0].tolist() == [2]
