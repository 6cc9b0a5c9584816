"""Requests that arrive while others are being decoded: when, in which order, what entering and leaving cost."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

import unmask
from benchmarks.memory import peak_bytes
from clocks import ticks
from helpers import cli
from unmask.core.errors import RequestError
from unmask.core.state import row_bytes
from unmask.engine.scheduler import Engine
from unmask.measure import machine, run, serving
from unmask.measure.problems import source
from unmask.measure.run import Batch, Setting
from unmask.measure.serving import Arrivals
from unmask.measure.summary import summarise, tallies


@pytest.fixture(scope="module")
def lm():
    return unmask.load(dtype="float32")


@pytest.mark.parametrize(
    ("text", "made", "shown"),
    [
        ("max", Arrivals("max"), "max"),
        ("2.5", Arrivals("poisson", 2.5), "poisson(2.5)"),
        ("poisson(0.5)", Arrivals("poisson", 0.5), "poisson(0.5)"),
        (" fixed(4) ", Arrivals("fixed", 4.0), "fixed(4)"),
    ],
)
def test_arrivals_are_read(text, made, shown):
    assert Arrivals.parse(text) == made
    assert str(made) == shown and Arrivals.parse(shown) == made


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "nan", "inf", "often", "poisson", "poisson()", "uniform(2)", "fixed(x)"]
)
def test_arrivals_that_cannot_be(text, tmp_path):
    with pytest.raises(RequestError, match="arrivals"):
        Arrivals.parse(text)
    done = cli("bench", "-p", "threshold", "--arrivals", text, "-o", tmp_path / "r.jsonl")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "arrivals" in done.stderr and not list(tmp_path.iterdir())


def test_when_requests_arrive():
    assert Arrivals("max").times(3, 0) == [0, 0, 0]
    assert Arrivals("fixed", 4.0).times(4, 7) == [0.25, 0.5, 0.75, 1.0]
    found = Arrivals("poisson", 4.0).times(2000, 0)
    gaps = [b - a for a, b in zip([0.0, *found], found, strict=False)]
    mean = sum(gaps) / 2000
    assert mean == pytest.approx(0.25, rel=0.1)
    assert (sum((g - mean) ** 2 for g in gaps) / 2000) ** 0.5 == pytest.approx(mean, rel=0.1), "exponential"
    assert found == Arrivals("poisson", 4.0).times(2000, 0) != Arrivals("poisson", 4.0).times(2000, 1)


def test_requests_enter_as_others_leave(lm, monkeypatch):
    """Three places, seven requests: never more at a time, the same texts as one after the other."""
    problems, sizes = source("word_problem", 7, "valid"), []
    setting = Setting("threshold(tau=0.99)", "dual", 48, 3, arrivals="max")
    real = unmask.Model.engine

    def engine(self, *given, **named):
        made = real(self, *given, **named)
        step = made.step

        def counted():
            events = step()
            sizes.append(max((len(e.rows) for e in events if isinstance(e, unmask.Step)), default=0))
            return events

        monkeypatch.setattr(made, "step", counted)
        return made

    monkeypatch.setattr(unmask.Model, "engine", engine)
    row = run.decode(lm, Batch(setting, problems, 0, 7))
    monkeypatch.undo()
    assert max(sizes) == 3 and sizes.count(3) > len(sizes) / 2
    alone = lm.generate([i.prompt for i in problems.items], 48, setting.policy, setting.cache, batch_size=1, seed=0)
    assert row["nfe"] == [one.stats.nfe for one in alone]
    assert row["correct"] == [int(i.check(r.text)) for i, r in zip(problems.items, alone, strict=True)]
    assert 2 <= row["entered"] <= 5
    assert 0 < row["moving_seconds"] < row["engine_seconds"] <= row["seconds"]
    assert all(0 < one <= row["seconds"] for one in row["latency"])


def test_requests_wait_for_their_time(lm, monkeypatch):
    """A pass takes a second, one request arrives every ten: nobody decodes in between, latency is the passes alone."""
    clock = ticks(monkeypatch, 1.0)
    slept = []
    clocks = SimpleNamespace(perf_counter=clock.read, sleep=lambda s: (slept.append(s), clock.wait(s)))
    monkeypatch.setattr(serving, "time", clocks)
    problems = source("record", 3, "valid")
    setting = Setting("vanilla", "none", 4, 2, eos_stop=False, arrivals="fixed(0.1)")
    row = run.decode(lm, Batch(setting, problems, 0, 3))
    assert slept == [10.0, 6.0, 6.0]
    assert row["latency"] == [4.0, 4.0, 4.0]
    assert row["engine_seconds"] == 12.0
    assert row["entered"] == 3


def test_who_comes_late_waits_for_a_place(lm, monkeypatch):
    """A pass takes a second, a request arrives every second, there is one place: latencies grow."""
    clock = ticks(monkeypatch, 1.0)
    monkeypatch.setattr(serving, "time", SimpleNamespace(perf_counter=clock.read, sleep=clock.wait))
    setting = Setting("vanilla", "none", 4, 1, eos_stop=False, arrivals="fixed(1)")
    row = run.decode(lm, Batch(setting, source("record", 3, "valid"), 0, 3))
    assert row["latency"] == [4.0, 7.0, 10.0]


def test_time_of_entering_and_leaving_is_the_engines(lm, monkeypatch):
    """Three seconds to enter, five to leave; forward passes take one."""
    clock = ticks(monkeypatch, 1.0)
    monkeypatch.setattr(serving, "time", SimpleNamespace(perf_counter=clock.read, sleep=clock.wait))
    enter, end = Engine._enter, Engine._end
    monkeypatch.setattr(Engine, "_enter", lambda *given: (clock.wait(3.0), enter(*given))[1])
    monkeypatch.setattr(Engine, "_end", lambda *given: (clock.wait(5.0), end(*given))[1])
    setting = Setting("vanilla", "none", 4, 1, eos_stop=False, arrivals="max")
    row = run.decode(lm, Batch(setting, source("record", 2, "valid"), 0, 2))
    assert row["moving_seconds"] == 2 * (3 + 5)
    assert row["engine_seconds"] == 2 * (3 + 4 + 5)


def test_peaks_are_told_by_step(lm, monkeypatch):
    """Of the steps in which a request entered, and of all."""
    marks = iter([5, 1, 9, 2, 7, 1, 1, 1])  # two requests of four passes each, one after the other
    monkeypatch.setattr(serving, "reset_peak", lambda device: True)
    monkeypatch.setattr(serving, "peak", lambda device: next(marks))
    setting = Setting("vanilla", "none", 4, 1, eos_stop=False, arrivals="max")
    row = run.decode(lm, Batch(setting, source("record", 2, "valid"), 0, 2))
    assert row["entering_peak_bytes"] == 7
    assert row["peak_bytes"] == (9 if machine.reset_peak(lm.denoiser.network.device) else None)


@pytest.mark.parametrize("cache", ["none", "dual", "dllm"])
def test_an_admission_takes_the_memory_of_one_row(lm, cache):
    """Beside seven rows an eighth takes no more than itself: keys and values of the others are not copied."""
    problems = source("record", 8, "valid").items
    requests = lm.requests([i.prompt for i in problems], 256, "vanilla", cache, seed=0, ignore_eos=True)
    engine, device = lm.engine(8), lm.denoiser.network.device
    for request in requests:
        engine.add(request)
    engine.step()
    one = row_bytes(engine._groups[0].state)
    for gone in (1, 3):
        for request in requests[:gone]:
            engine.abort(request.id)
        requests = [*requests[gone:], *(replace(r, id=f"{gone} {r.id}") for r in requests[:gone])]
        for request in requests[-gone:]:
            engine.add(request)
        assert engine.running == 8 - gone
        taken = peak_bytes(engine._admit, device)
        assert engine.running == 8
        assert taken <= gone * 1.25 * one + 2**20
        engine.step()


def test_the_command(tmp_path):
    """One line for all problems, resumed by the same command; other arrivals are another setting."""
    path = tmp_path / "r.jsonl"
    args = ["bench", "-p", "threshold", "--baseline", "-", "-t", "record", "-n", 5, "--gen-length", 16, "-o", path,
            "--batch-size", 2, "--arrivals"]  # fmt: skip
    done = cli(*args, "max", "--json")
    assert done.exit_code == 0, done.stderr
    (figures,) = map(json.loads, done.stdout.splitlines())
    assert (figures["arrivals"], figures["n"]) == ("max", 5)
    assert 0 < figures["moving"] < 1 and 0 < figures["latency"][0] <= figures["latency"][1]
    before = path.read_text()
    assert before.count("\n") == 2
    assert "moving" in cli(*args, "max").stdout
    assert path.read_text() == before
    assert cli(*args, "50").exit_code == 0
    assert '"arrivals":"poisson(50)"' in path.read_text()
    assert cli("report", path, "-o", tmp_path / "page").exit_code == 0
    one, other = summarise(tallies(map(json.loads, path.read_text().splitlines())), None)
    assert (one.setting.label, other.setting.label) == ("threshold, arrivals max", "threshold, arrivals poisson(50)")
    refused = cli("bench", "--autoregressive", "unmask-tiny", "-p", "threshold", "--arrivals", "max", "-o", path)
    assert refused.exit_code == 2 and "--arrivals" in refused.stderr
