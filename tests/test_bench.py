"""Measuring: statistics by hand, runs that resume, figures that add up, and the commands bench and report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import product
from math import comb, exp
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import unmask
import warm
from clocks import ticks
from unmask.api import BUNDLED, BUNDLED_NAME
from unmask.cli import app
from unmask.core import nets
from unmask.core.errors import RequestError
from unmask.measure import ledger, lines, machine, report, run
from unmask.measure.figures import lengths, pareto, sweeps
from unmask.measure.problems import Item, Source, source
from unmask.measure.run import Batch, Setting
from unmask.measure.stats import aup, mcnemar, paired_interval, wilson
from unmask.measure.summary import VANILLA, summarise, tallies
from unmask.measure.tables import COLUMNS, paper, table
from unmask.registry import POLICIES
from unmask.text.template import Template

SHORT = ["-t", "record", "--split", "valid", "--gen-length", "64"]


@pytest.fixture(scope="module")
def lm():
    return unmask.load()


def cli(*args):
    return CliRunner().invoke(app, list(map(str, args)), prog_name="unmask")


def fine(result):
    assert result.exit_code == 0, result.stderr
    return result.stdout


# --- statistics


def test_wilson():
    """Values of Brown, Cai and DasGupta's formula, worked out for 8 of 10."""
    assert wilson(8, 10) == pytest.approx((0.4901, 0.9433), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
    low, high = wilson(300, 300)
    assert low == pytest.approx(0.98736, abs=1e-5)
    assert high == pytest.approx(1)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_test(won, lost):
    n = won + lost
    weights = [comb(n, k) for k in range(n + 1)]
    as_far = sum(w for k, w in enumerate(weights) if abs(2 * k - n) >= abs(won - lost)) / 2**n
    assert mcnemar(won, lost) == pytest.approx(min(1.0, as_far) if won != lost else 1.0)
    assert mcnemar(won, lost) == mcnemar(lost, won)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 200))
def test_paired_interval_holds_the_difference(won, lost, ties):
    n = won + lost + ties
    low, high = paired_interval(won, lost, n)
    assert -1 <= low <= high <= 1
    if n:
        assert low <= (won - lost) / n <= high or n < 5  # it is drawn a little towards 0
        assert (high, low) == pytest.approx(tuple(-x for x in paired_interval(lost, won, n)))


def test_aup():
    """The formula of d3LLM on two curves, by hand."""
    assert aup([(1.0, 80.0)], 80.0) == pytest.approx(80)
    by_hand = 1 * 80 + (3 - 1) * (78 * exp(-3 * (1 - 78 / 80)) + 80) / 2
    assert aup([(3.0, 78.0), (1.0, 80.0), (9.0, 74.0)], 80.0) == pytest.approx(by_hand)  # 74 is more than 5 below 80
    with pytest.raises(ValueError, match="needs a point"):
        aup([], 80.0)


def test_of_equal_parallelism_the_most_accurate_counts():
    curve = [(1.0, 80.0), (3.0, 78.0)]
    for worse in ([(1.0, 20.0)], [(3.0, 76.0), (1.0, 79.0)]):
        assert aup([*worse, *curve], 80.0) == aup([*curve, *worse], 80.0) == aup(curve, 80.0)


# --- the file of results


def held(path):
    return [line.value for line in ledger.read(path)]


def test_ledger_drops_what_was_cut_off(tmp_path):
    path = tmp_path / "deep" / "r.jsonl"
    assert held(path) == []
    ledger.append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"b": ')
    assert held(path) == [{"a": 1}]
    ledger.append(path, {"c": 3})
    assert held(path) == [{"a": 1}, {"c": 3}]
    path.write_text('{"kind":"ru')
    assert held(path) == []
    ledger.append(path, {"d": 4})
    assert held(path) == [{"d": 4}]


@pytest.mark.parametrize(
    "content", ['{"a": 1}\nnonsense\n', "a line without end", '{"a": 1}', "[" * 10**5 + "\n", "\0\n"]
)
def test_what_is_no_ledger_is_left_alone(content, tmp_path):
    """A file of one line without its end is not ours to cut off."""
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(RequestError, match=r"notes line [12].* not"):
        list(ledger.read(path))
    done = cli("bench", "-p", "threshold", *SHORT, "-n", 1, "-o", path)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert path.read_text() == content


def test_a_device_is_no_ledger():
    with pytest.raises(RequestError, match="/dev/null is not a regular file"):
        list(ledger.read(Path("/dev/null")))


# --- problems


def test_sources(tmp_path):
    sudoku = source("sudoku", 3, "valid", 1)
    assert (sudoku.name, sudoku.split, sudoku.seed, len(sudoku.items)) == ("sudoku", "valid", 1, 3)
    own = tmp_path / "own.jsonl"
    rows = [{"prompt": "a", "answer": " 1  2"}, {"prompt": "b", "answer": ["x", 3]}, {"prompt": "c", "answer": "z"}]
    own.write_text("\n\n".join(map(json.dumps, rows)))
    one, two = source(str(own), 2).items
    assert (one.prompt, two.prompt) == ("a", "b")
    assert one.check("1 2\n")
    assert not one.check("12")
    assert two.check("3")
    assert not two.check("")


def test_generators_of_reasoning_gym():
    import reasoning_gym

    made = source("gym:chain_sum", 3, seed=5)
    items = made.items
    assert made.split.startswith("reasoning-gym "), "another version can draw other problems"
    known = list(reasoning_gym.create_dataset("chain_sum", size=3, seed=5))
    assert [i.prompt for i in items] == [k["question"] for k in known]
    assert all(i.check(k["answer"]) and not i.check("no number") for i, k in zip(items, known, strict=True))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("chess", {}, "unknown task 'chess'; accepted: word_problem"),
        ("sudoku", {"split": "dev"}, "unknown split 'dev'; accepted: train, valid, test"),
        ("sudoku", {"n": 0}, "n must be at least 1"),
        ("sudoku", {"n": 10**6}, "too few distinct test problems"),
        ("gym:chess", {}, "gym:chess"),
        ("none.jsonl", {}, "cannot read none.jsonl: No such file"),
    ],
)
def test_sources_that_cannot_be(name, more, message, monkeypatch):
    monkeypatch.setattr("unmask.tasks.base._MAX_TRIES_PER_PROBLEM", 0)
    with pytest.raises(RequestError, match=message):
        source(name, **{"n": 1, **more})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no problems"),
        ("[1]", "line 1: it must be an object"),
        ('\n{"prompt": 1, "answer": 1}', 'line 2: "prompt" must be a text'),
        ('\n{"prompt": "a"}', 'line 2: no "answer"'),
        ("{", "line 1"),
        ("[" * 10**5, "line 1: not JSON"),
        *(
            (f'{{"prompt": "a", "answer": {a}}}', 'line 1: "answer" must be')
            for a in ("null", "[]", "true", '[["x"]]', "{}")
        ),
    ],
)
def test_files_that_cannot_be_read(text, message, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        source(str(path), 3)


def test_lines_end_where_they_end(tmp_path):
    """Not at a line separator within a text; a byte order mark and Windows' ends of lines are nothing."""
    path = tmp_path / "p.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b\x85", "answer": 1.5}\r\n{"prompt": "c", "answer": "d"}\r\n'.encode())
    one, two = source(str(path), 3).items
    assert (one.prompt, two.prompt) == ("a\u2028b\x85", "c")
    assert one.check("1.5")


def test_generators_that_need_more_than_a_name():
    with pytest.raises(RequestError, match="gym:composite: Must specify"):
        source("gym:composite", 1)


def test_a_verifier_that_stumbles_says_no(monkeypatch):
    import reasoning_gym

    made = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)
    monkeypatch.setattr(type(made), "score_answer", lambda *_: 1 / 0)
    [item] = source("gym:chain_sum", 1).items
    assert item.check("5") is False


# --- runs

ITEMS = [Item("a", bool)] * 7
PLANS = [
    Setting("vanilla", "none", 64, 2),
    Setting("vanilla", "none", 64, 3),
    Setting("threshold", "dual", 64, 4),
    Setting("threshold", "none", 64, 4),
]


def test_order_takes_every_problem_once_per_setting_side_by_side():
    sources = [Source("one", ITEMS), Source("two", ITEMS[:3])]
    batches = run.order(PLANS, sources)
    for setting, one in product(PLANS, sources):
        own = [b for b in batches if (b.setting, b.source) == (setting, one)]
        assert [i for b in own for i in range(b.first, b.first + b.n)] == list(range(len(one.items)))
        assert all(b.n <= setting.batch_size for b in own)
        assert all(b.n == setting.batch_size for b in own[:-1])
    stretches = [b.first // 4 for b in batches]
    assert stretches == sorted(stretches), "no setting runs ahead of the others"
    assert batches == run.order(PLANS, sources)


def test_a_batch_tells_what_generate_tells(lm):
    problems = source("word_problem", 3, "valid")
    setting = Setting("threshold", "dual", 64, 3, temperature=0.5)
    row = run.decode(lm, Batch(setting, problems, 1, 2))
    prompts = [i.prompt for i in problems.items[1:]]
    results = lm.generate(prompts, 64, "threshold", "dual", temperature=0.5, seed=[1, 2])
    assert row["nfe"] == [r.stats.nfe for r in results]
    assert row["tokens"] == [r.stats.tokens for r in results]
    assert row["positions"] == pytest.approx([r.stats.positions for r in results], abs=0.1)
    assert row["correct"] == [i.check(r.text) for i, r in zip(problems.items[1:], results, strict=True)]
    assert 0 < row["model_seconds"] < row["seconds"]
    assert all(0 < s < row["seconds"] for s in row["first_token"])
    assert row["peak_bytes"] > 10**7


def test_the_first_token_counts_when_it_holds(lm, monkeypatch):
    """Saber takes tokens back; what counts is the last commit of the first position, not the first."""
    problems = source("waiting_line", 1, "valid")
    prompt, policy = problems.items[0].prompt, "saber(n=8,mu=2)"
    start = len(lm.requests([prompt], 64)[0].prompt)
    steps = lm.stream(prompt, 64, policy)
    commits = [step.index for step in steps for c in step.committed() if c.position == start]
    assert len(commits) > 1, "it was taken back"
    ticks(monkeypatch)
    row = run.decode(lm, Batch(Setting(policy, "none", 64), problems, 0, 1))
    assert row["first_token"] == [1 + commits[-1]]  # by a clock that ticks once a step


def test_what_is_done_is_not_done_again(lm, tmp_path, monkeypatch):
    path, problems = tmp_path / "r.jsonl", source("record", 5, "valid")
    batches = run.order([Setting("threshold", "none", 64, 2), Setting("threshold", "dual", 64, 2)], [problems])
    first = run.Decoder(lm, None, path)
    done = [first(batch) for batch in batches[:3]]
    second = run.Decoder(lm, None, path)
    assert second.missing(batches) == first.missing(batches) == batches[3:]
    monkeypatch.setattr(run, "decode", lambda lm, batch: pytest.fail("it is in the file"))
    assert [second(batch) for batch in batches[:3]] == done
    monkeypatch.undo()
    assert [second(batch)["key"] for batch in batches] == [b.key for b in batches]
    kinds = [row["kind"] for row in held(path)]
    assert kinds == ["run", "batch", "batch", "batch", "run", "batch", "batch", "batch"]
    assert run.Decoder(lm, None, path).missing(batches) == []
    assert run.Decoder(lm, "another", path).missing(batches) == batches
    path.write_text('{"x": 1}\n')
    with pytest.raises(RequestError, match=r"r\.jsonl line 1 is not a line of `unmask bench`"):
        run.Decoder(lm, None, path)


def test_a_setting_warms_up_once_before_what_is_timed(lm, tmp_path, monkeypatch):
    problems, seen = source("record", 6, "valid"), []
    real = run.decode
    monkeypatch.setattr(run, "decode", lambda lm, batch: seen.append((batch.first, batch.n)) or real(lm, batch))
    for timed, warmed in ((True, [(0, 1)]), (False, [])):
        decoder = run.Decoder(lm, None, tmp_path / f"{timed}.jsonl")
        for first in (0, 2, 4):
            decoder(Batch.at(Setting("threshold", "none", 24, 2), problems, first), timed)
        assert seen == [*warmed, (0, 2), (2, 2), (4, 2)]
        seen.clear()


def test_other_weights_under_the_same_name_are_another_model(lm):
    """Results of a folder do not count once it holds something else; the shipped model goes with the version."""
    before = run.identity(run.environment(lm, "folder")), run.identity(run.environment(lm, None))
    weight = next(lm.denoiser.network.parameters())
    with torch.no_grad():
        weight += 1
    after = run.identity(run.environment(lm, "folder")), run.identity(run.environment(lm, None))
    with torch.no_grad():
        weight -= 1
    assert (before[0] != after[0], before[1] == after[1]) == (True, True)


def test_another_tokenizer_or_template_is_another_model(lm, monkeypatch):
    before = run.identity(run.environment(lm, "folder"))
    monkeypatch.setattr(lm.text, "_template", Template("{{ messages[0].content }}", {}, str))
    assert run.identity(run.environment(lm, "folder")) != before


def test_files_that_a_policy_names_are_a_part_of_the_setting(tmp_path):
    """Other weights under the same name are decoded again, and have lines of their own."""
    weights, results = tmp_path / "w.safetensors", tmp_path / "r.jsonl"
    kept = load_file(nets.BUNDLED / "learn2pd.safetensors")
    args = ("bench", "-p", f"prophet(learn2pd(weights='{weights}'))", "--baseline", "-", "-t", "sudoku", "-n", 1,
            "--gen-length", 32, "-o", results, "--json")  # fmt: skip
    found = []
    for sign in (1, -1, 1):
        save_file({name: sign * value for name, value in kept.items()}, weights)
        (one,) = map(json.loads, fine(cli(*args)).splitlines())
        found.append((one["files"], one["nfe"]))
    assert found[0] == found[2]
    assert found[0][0] != found[1][0]
    first, second = summarise(tallies(lines.read(results)), None)
    assert (first.setting.files, second.setting.files) == (found[0][0], found[1][0])
    assert table([first, second]).count(", files ") == 2
    assert run.files("apd") is run.files("threshold") is run.files("autoregressive(shipped)") is None
    assert run.files(f"autoregressive({tmp_path})") == run.files(f"apd(verifier='{tmp_path}')") is not None


def test_a_folder_called_as_the_bundled_model_is_a_folder(tmp_path, monkeypatch):
    """Its weights count; those of the model that ships go with the version."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / BUNDLED_NAME).symlink_to(BUNDLED)
    args = ("bench", "-p", "threshold", "--baseline", "-", "-t", "sudoku", "-n", 1, "--gen-length", 8, "-o", "r.jsonl")
    for more in ((), ("--model", BUNDLED_NAME)):
        fine(cli(*args, *more))
    heads = [row for row in map(json.loads, Path("r.jsonl").read_text().splitlines()) if row["kind"] == "run"]
    assert [(head["model"], "fingerprint" in head) for head in heads] == [(BUNDLED_NAME, False), (BUNDLED_NAME, True)]
    assert heads[0]["run"] != heads[1]["run"]


# --- figures


def line(policy, cache, first, correct, tokens, nfe, seconds, task="t", size=2):
    key = {"policy": policy, "cache": cache, "gen_length": 64, "batch_size": size, "eos_stop": True, "temperature": 0.0,
           "task": task, "split": None, "seed": 0, "first": first, "n": len(correct)}  # fmt: skip
    return {"kind": "batch", "version": 1, "run": "r", "key": key, "correct": correct, "nfe": nfe, "tokens": tokens,
            "positions": [10 * f for f in nfe], "first_token": [0.1] * len(nfe), "digest": ["d"] * len(nfe),
            "seconds": seconds, "cpu_seconds": 2 * seconds, "model_seconds": 0.75 * seconds,
            "peak_bytes": 100 + first}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nothing tells of the CPU")
def test_a_cpu_is_named_with_its_generation():
    """Virtual machines call different ones alike."""
    info = Path("/proc/cpuinfo").read_text()
    told = dict(re.findall(r"^(cpu family|model|model name)\s*: (.+)$", info, re.MULTILINE))
    if "cpu family" not in told:
        pytest.skip("no families on this architecture")
    expected = f"{told['model name']} (family {told['cpu family']}, model {told['model']})"
    assert machine.device_name(torch.device("cpu")) == expected


RUN = {"kind": "run", "version": 1, "run": "r", "model": "m", "device": "d", "dtype": "float32", "threads": 1,
       "torch": "2", "unmask": "0", "commit": None, "command": "unmask bench"}  # fmt: skip
ROWS = [
    RUN,
    line("vanilla", "none", 0, [1, 1], [10, 10], [10, 10], 2.0),
    line("vanilla", "none", 2, [0, 1], [20, 20], [20, 20], 4.0),
    line("threshold", "dual", 0, [1, 0], [10, 12], [2, 3], 0.5),
    line("threshold", "dual", 2, [1, 0], [20, 18], [4, 1], 0.5),
    line("threshold", "dual", 0, [1, 1], [5, 5], [1, 1], 1.0, task="u"),
]


def test_figures_by_hand():
    vanilla, t, u, both = summarise(tallies(ROWS))
    assert (vanilla.task, t.task, u.task, both.task) == ("t", "t", "u", "all")
    assert (t.n, t.right, t.won, t.lost, t.shared) == (4, 2, 1, 2, 4)
    assert t.difference == (-0.25, *paired_interval(1, 2, 4))
    assert t.p_value == 1
    assert (t.nfe, t.tpf, t.positions) == (2.5, 6, 25)
    assert (t.rate, t.cpu_rate, t.outside, t.peak_bytes) == (60, 30, 0.25, 102)
    assert (vanilla.speedup, t.speedup, t.speedup_median) == (1, 6, pytest.approx((4.4 + 7.6) / 2))
    assert (u.shared, u.difference, u.speedup) == (0, None, None)
    assert (both.n, both.right, both.shared) == (6, 4, 4)
    assert summarise(tallies(ROWS), ("threshold", "dual", True))[0].lost == 1


def found(rows, baseline=VANILLA):
    return {(f.setting.policy, f.task): f for f in summarise(tallies(rows), baseline)}


def test_a_problem_counts_once():
    """A file given twice; and a run of three problems that went on with four."""
    assert found([*ROWS, *ROWS]) == found(ROWS)
    last = line("threshold", "dual", 2, [1], [99], [99], 9.0)
    assert found([RUN, last, *ROWS[1:]])["threshold", "t"] == found(ROWS)["threshold", "t"]


def test_splits_and_seeds_are_not_one_task():
    rows = [RUN, *(line("vanilla", "none", 0, [1, right], [9, 9], [9, 9], 1.0) for right in (0, 1, 1))]
    for row, (split, seed) in zip(rows[1:], [("valid", 0), ("test", 0), ("test", 1)], strict=True):
        row["key"] |= {"split": split, "seed": seed}
    shown = {task: f.accuracy for (_, task), f in found(rows).items()}
    assert shown == {"t valid seed 0": 0.5, "t test seed 0": 1, "t test seed 1": 1, "all": pytest.approx(5 / 6)}


def test_what_covers_some_tasks_only_is_not_called_all():
    more = [line("threshold", "none", 0, [1], [5], [1], 1.0, task=task, size=2) for task in "tu"]
    three = line("threshold", "dual", 0, [1], [5], [1], 1.0, task="w")
    assert {f.task for f in found([*ROWS, *more, three]).values() if f.setting.policy == "threshold"} >= {"t + u"}
    assert ("threshold", "all") in found([*ROWS, three])


def test_lengths_of_different_tasks_are_not_one_line(monkeypatch):
    rows = [line("vanilla", "none", 0, [1], [9], [9], 1.0, task=task) for task in "tuv"]
    longer = [line("vanilla", "none", 0, [1], [9], [9], 1.0, task=task) for task in "tu"]
    for row in longer:
        row["key"]["gen_length"] = 128
    drawn: list[dict] = []
    monkeypatch.setattr("unmask.measure.figures.over_lengths", lambda lines, _: drawn.append(lines))
    lengths(report.overall(summarise(tallies([RUN, *rows, *longer]))))
    assert drawn == [{"vanilla, all": [(64, 1.0)], "vanilla, t + u": [(128, 1.0)]}]


def test_the_baseline_is_what_was_asked_for():
    full = [line("vanilla", "none", at, [1, 1], [10, 10], [64, 64], 20.0) for at in (0, 2)]
    for row in full:
        row["key"]["eos_stop"] = False
    rows = [*ROWS, *full]
    by_stop = {f.setting.eos_stop: f for f in summarise(tallies(rows), ("vanilla", "none", False)) if f.task == "t"
               and f.setting.policy == "vanilla"}  # fmt: skip
    assert by_stop[True].speedup == pytest.approx((60 / 6) / (40 / 40))
    assert by_stop[False].speedup == 1
    assert all(f.difference is None and f.speedup is None for f in summarise(tallies(rows), None))


def test_quartiles_are_within_what_was_seen():
    slow, fast = (line("vanilla", "none", at, [1, 1], [5, 5], [5, 5], 10 / rate) for at, rate in ((0, 10), (2, 100)))
    [one] = summarise(tallies([RUN, slow, fast]))
    assert one.spread == pytest.approx((32.5, 77.5))


def test_a_difference_says_of_how_many_problems_it_is():
    shown = {f.task: dict(COLUMNS)["against baseline"](f) for f in summarise(tallies(ROWS))[1:]}
    assert shown["t"].endswith("p 1)")
    assert shown["all"].endswith("p 1, n 4)")
    assert shown["u"] == ""


def elsewhere(rows, **more):
    """The same, of another machine."""
    return [{**row, "run": "other", **(more if row["kind"] == "run" else {})} for row in rows]


@pytest.mark.parametrize("count", [20, 21])
def test_policies_without_a_colour_of_their_own_are_numbered(monkeypatch, count):
    from matplotlib.axes import Axes

    told = []
    monkeypatch.setattr(Axes, "annotate", lambda axes, text, *_, **__: told.append(text))
    slow, wrong, *names = list(POLICIES)[:count]
    own = [line(name, "none", 0, [1, 1], [8, 8], [2, 2], 1.0) for name in names]
    own += [line(slow, "none", 0, [1, 1], [8, 8], [2, 2], 4.0), line(wrong, "none", 0, [1, 0], [8, 8], [2, 2], 1.0)]
    assert pareto(summarise(tallies([RUN, *own]))).startswith(b"\x89PNG")
    assert told == ([] if count == 20 else [*map(str, range(1, 22)), *map(str, range(1, 20))])  # all, then closer


def test_environments_are_told_apart():
    """In the tables, in every picture, and in the curves of which one area is taken."""
    both = summarise(tallies([*ROWS, *elsewhere(ROWS, device="fast one", threads=8)]))
    assert table(both).count("| device fast one, threads 8 |") == 4
    assert "device" not in table(both[:4])
    assert paper(both).count("`vanilla`, device d, threads 1") == 1
    curve = [line(f"threshold(tau={t})", "none", 0, [1, 1], [8, 8], [n, n], 1.0) for t, n in ((0.5, 1), (0.9, 4))]
    own = summarise(tallies([RUN, *curve, *elsewhere([RUN, *curve], device="fast one")]))
    assert [(name, count) for name, count, _ in report.parallelism(own)] == [
        (f"threshold, gen_length 64, device {device}, t", 2) for device in ("d", "fast one")
    ]
    compiled = summarise(tallies([*ROWS, *elsewhere(ROWS, compile=True)]))
    assert table(compiled).count("| compile True |") == table(compiled).count("| compile none |") == 4
    assert "compile True" in report.page(compiled, [], elsewhere(ROWS[:1], compile=True))
    drawn = list(report.pictures(own, "rate"))
    assert [p.name for p in drawn] == ["pareto-64-2-t.png", "pareto-64-2-t-2.png"]
    assert drawn[1].caption.endswith(", t, device fast one")


def test_a_sweep_is_of_one_environment_and_of_specs_that_are_known():
    grid = [line(f"slowfast(tau_min={a},tau_high={b})", "none", 0, [1], [5], [1], 1.0) for a, b in
            product((0.1, 0.3), (0.5, 0.9))]  # fmt: skip
    rows = [RUN, *grid, line("plugged(in=1)", "none", 0, [1], [5], [1], 1.0)]
    both = summarise(tallies([*rows, *elsewhere(rows, device="x")]))
    assert [(name, len(group)) for name, group in sweeps(both)] == [("none, device d", 4), ("none, device x", 4)]


def test_temperatures_are_told_apart():
    hot = line("vanilla", "none", 0, [1, 0], [10, 10], [10, 10], 2.0)
    hot["key"]["temperature"] = 0.5
    cold, warm = summarise(tallies([*ROWS[:2], hot]))
    assert "| `vanilla`, temperature 0.5 |" in table([cold, warm])
    assert warm.setting.label == "vanilla, temperature 0.5"


def test_tables():
    found = summarise(tallies(ROWS))
    text = table(found)
    assert text.startswith("L 64, batch 2, ")
    assert "| `threshold` | `dual` | t | 4 | 50.0 (15.0 - 85.0) | -25.0 (-" in text
    assert "+1 -2, p 1)" in text
    assert len(text.splitlines()) == 2 + 2 + len(found)
    assert "| t | `vanilla` | 10.00 | 1.00x | 75.00 |\n|  | `threshold + dual` | 60.00 | 6.00x | 50.00 |" in paper(
        found
    )
    assert len(table(found[:1], COLUMNS[:3]).splitlines()) == 3


def test_curves_are_of_wrappers_around_one_policy():
    """A wrapper around another policy, and a cache at another interval, is another decoder."""
    specs = [("adaptive(threshold(tau=0.8))", "none"), ("adaptive(threshold)", "none"), ("adaptive", "none"),
             ("adaptive(klass)", "none"), ("prophet(adaptive(klass))", "none"), ("threshold", "every(dual,4)"),
             ("threshold(tau=0.5)", "every(dual,4)"), ("threshold", "every(dllm,4)"), ("plugged(a=1)", "none"),
             ("plugged(a=2)", "none")]  # fmt: skip
    rows = [line(p, c, 0, [1], [8], [n + 1], 1.0) for n, (p, c) in enumerate(specs)]
    found = {name: n for name, n, _ in report.parallelism(summarise(tallies([RUN, *rows])))}
    end = ", gen_length 64, t"
    assert found == {f"adaptive(threshold){end}": 3, f"threshold + every(dual,4){end}": 2, f"plugged{end}": 2}
    assert run.Setting("prophet(adaptive(klass))", "none", 8).family == "prophet(adaptive(klass))"


def test_parallelism_needs_a_curve():
    rows = [
        RUN,
        *(line(f"threshold(tau={t})", "none", 0, [1, 1], [8, 8], [n, n], 1.0) for t, n in ((0.5, 1), (0.9, 4))),
    ]
    [(name, count, area)] = report.parallelism(summarise(tallies([*rows, *ROWS[1:3]])))
    assert (name, count) == ("threshold, gen_length 64, t", 2)
    assert area == pytest.approx(aup([(2.0, 100.0), (8.0, 100.0)], 100.0))


@pytest.mark.parametrize("odd", [{"gen_length": 32}, {"eos_stop": False}, {}])
def test_the_best_accuracy_is_of_what_can_be_compared(odd):
    """A better answer at another length, or without early stop, does not weigh."""
    curve = [line(f"threshold(tau={t})", "none", 0, [1, 0], [8, 8], [n, n], 1.0) for t, n in ((0.5, 1), (0.9, 4))]
    other = line("vanilla", "none", 0, [1, 1], [8, 8], [8, 8], 1.0)
    other["key"] |= odd
    [(_, _, area)] = report.parallelism(summarise(tallies([RUN, *curve, other])))
    assert area == pytest.approx(aup([(2.0, 50.0), (8.0, 50.0)], 50.0 if odd else 100.0))


def test_settings_of_equal_parallelism_are_one_point():
    curve = [line(f"threshold(tau={t})", "none", 0, [1, r], [8, 8], [n, n], 1.0) for t, n, r in
             ((0.5, 1, 1), (0.8, 1, 0), (0.9, 4, 1))]  # fmt: skip
    [(_, count, area)] = report.parallelism(summarise(tallies([RUN, *curve])))
    assert (count, area) == (3, pytest.approx(aup([(2.0, 100.0), (8.0, 100.0)], 100.0)))


# --- commands


@pytest.mark.slow
def test_bench_and_report(tmp_path):
    path, folder = tmp_path / "r.jsonl", tmp_path / "page"
    args = ["bench", "-p", "slowfast(tau_min=0.1,tau_high=0.9)", "-p", "slowfast(tau_min=0.3,tau_high=0.9)",
            "-p", "slowfast(tau_min=0.1,tau_high=0.5)", "-p", "slowfast(tau_min=0.3,tau_high=0.5)",
            *SHORT, "-n", 2, "--batch-size", 2, "-o", path]  # fmt: skip
    text = fine(cli(*args))
    assert text.count("\n| `slowfast") == 4
    assert "| `vanilla` |" in text
    before = path.read_bytes()
    found = [json.loads(row) for row in fine(cli(*args, "--json")).splitlines()]
    assert path.read_bytes() == before, "nothing was left to run"
    assert found[0]["policy"] == "vanilla"
    assert all(f["n"] == 2 and f["nfe"] >= 1 and f["device"] for f in found)
    names = {Path(p).name for p in fine(cli("report", path, "-o", folder)).split()}
    assert names == {"index.html", "tables.md", "figures.json", "pareto-64-2-record.png", "sweep-0.png"}
    page = (folder / "index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/png;base64,") == 2
    assert "<!--" not in page
    assert all((folder / n).read_bytes().startswith(b"\x89PNG") for n in names if n.endswith(".png"))
    assert json.loads((folder / "figures.json").read_text())[0]["policy"] == "vanilla"
    fine(cli("report", path, "-o", folder, "--baseline", "-"))
    assert all(f["speedup"] is f["difference"] is None for f in json.loads((folder / "figures.json").read_text()))


def test_lengths_and_sizes_are_all_measured(tmp_path):
    """Each once, though one is asked for twice."""
    path = tmp_path / "r.jsonl"
    shapes = [*["--gen-length", 48] * 2, "--gen-length", 64, "--batch-size", 1, "--batch-size", 2]
    args = ["-t", "record", "--split", "valid", "-n", 2, "--pair", "threshold|dual|full", "--baseline", "-", *shapes]
    args += ["-o", path]
    rows = [json.loads(row) for row in fine(cli("bench", *args, "--json")).splitlines()]
    assert {(r["gen_length"], r["batch_size"]) for r in rows} == {(48, 1), (48, 2), (64, 1), (64, 2)}
    assert all(r["policy"] == "threshold" and not r["eos_stop"] and r["difference"] is None for r in rows)
    assert len(path.read_text().splitlines()) == 1 + 2 * (2 + 1)


def test_without_a_baseline_nothing_is_compared(tmp_path):
    nothing = ["--baseline", "-", "-o", tmp_path / "r.jsonl", "--json"]
    done = cli("bench", "-t", "record", "-n", 1, "--gen-length", 8, "-p", "threshold", "-p", "factor", *nothing)
    rows = [json.loads(row) for row in fine(done).splitlines()]
    assert [(r["policy"], r["speedup"], r["p_value"]) for r in rows] == [
        ("threshold", None, None),
        ("factor", None, None),
    ]


def test_a_baseline_can_run_without_early_stop(tmp_path):
    base = ["--baseline", "vanilla|none|full", "-o", tmp_path / "r.jsonl", "--json"]
    done = cli("bench", "-t", "record", "--split", "valid", "-n", 1, "--gen-length", 40, "-p", "threshold", *base)
    full, fast = map(json.loads, fine(done).splitlines())
    assert (full["policy"], full["eos_stop"], full["speedup"]) == ("vanilla", False, 1)
    assert fast["nfe"] < full["nfe"] == 40
    assert fast["speedup"] == pytest.approx(fast["rate"] / full["rate"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give --policy NAME"),
        (["-c", "dual"], "--cache needs --policy"),
        (["-p", "greedy"], "unknown policy 'greedy'"),
        (["-p", "threshold", "-c", "huge"], "unknown cache 'huge'"),
        (["--pair", "threshold"], "expected POLICY|CACHE or POLICY|CACHE|full, got 'threshold'"),
        (["--pair", "threshold|full"], "--pair: expected POLICY|CACHE or"),
        (["--pair", "threshold|dual|fast"], "cannot read spec 'threshold|dual' at '|dual'"),
        (["-p", "threshold", "--baseline", ""], "expected POLICY|CACHE"),
        (["-p", "threshold", "-t", "chess"], "unknown task 'chess'"),
        (
            ["-p", "threshold", "-t", "any.jsonl", "--split", "best"],
            "unknown split 'best'; accepted: train",
        ),
        (["-p", "threshold", "-n", "0"], "-n"),
        (["-p", "threshold", "--temperature", "-1"], "temperature"),
        (["-p", "threshold", "-t", "sudoku", "--gen-length", "99999"], "sudoku: prompt 0"),
        (["-p", "threshold", "-m", "/none"], "/none"),
        (["-p", "threshold", "-t", "sudoku", "-n", "1", "-o", "{tmp}"], "cannot write"),
    ],
)
def test_bench_refuses(args, message, tmp_path):
    args = [a.format(tmp=tmp_path) for a in args]
    done = cli("bench", "-o", tmp_path / "r.jsonl", *args)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        (None, [], "no file"),
        ("", [], "holds no results"),
        ('{"a": 1}\n', [], "line 1 is not a line of `unmask bench`"),
        (json.dumps(RUN) + "\n", [], "holds no results"),
        (json.dumps(RUN | {"version": 2}) + "\n", [], "version 1"),
        (json.dumps(ROWS[1]) + "\n", [], "r.jsonl line 1: the line of kind run that describes run r is missing"),
        *(
            (f"{json.dumps(RUN)}\n{json.dumps(ROWS[1] | odd)}\n", [], f"r.jsonl line 2: {named}")
            for odd, named in (
                ({"key": {}}, 'no "key.policy"'),
                ({"nfe": [1]}, '"nfe"'),
                ({"nfe": [0, 1]}, '"nfe[0]"'),
                ({"seconds": 0}, '"seconds"'),
                ({"tokens": ["1", 2]}, '"tokens[0]"'),
                ({"run": []}, '"run"'),
                ({"nfe": [10**400, 1]}, '"nfe[0]"'),
                ({"correct": [7, 1]}, '"correct[0]"'),
                ({"peak_bytes": 10**400}, '"peak_bytes"'),
                ({"peak_bytes": "1"}, '"peak_bytes"'),
            )
        ),
        (f"{json.dumps(RUN)}\n{json.dumps(ROWS[1] | {'kind': 'x'})}\n", [], "r.jsonl line 2 is not a line"),
        *(
            (
                f"{json.dumps(RUN)}\n{json.dumps(ROWS[1] | {'key': ROWS[1]['key'] | odd})}\n",
                [],
                f'r.jsonl line 2: "key.{next(iter(odd))}" must',
            )
            for odd in ({"temperature": 10**400}, {"gen_length": 0}, {"n": -2}, {"first": -1}, {"seed": 2**63})
        ),
        (
            f"{json.dumps(RUN)}\n{json.dumps({k: v for k, v in ROWS[1].items() if k != 'peak_bytes'})}\n",
            [],
            'r.jsonl line 2: no "peak_bytes"',
        ),
        (None, ["--speed", "light"], "unknown --speed 'light'; accepted: rate, cpu_rate, tpf"),
        (None, ["--baseline", "vanilla"], "--baseline: expected POLICY|CACHE or POLICY|CACHE|full, got 'vanilla'"),
    ],
)
def test_report_refuses(content, args, message, tmp_path):
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_text(content)
    done = cli("report", path, "-o", tmp_path / "page", *args)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
def test_a_kill_loses_the_batch_in_flight_only(tmp_path):
    """kill -9 in the middle; then the same command ends with every batch there once."""
    path = tmp_path / "r.jsonl"
    args = ["bench", "-p", "threshold", *SHORT, "-n", "12", "--threads", "1", "-o", str(path)]
    command = [sys.executable, "-c", "from unmask.cli import main; main()", *args]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
    ) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until and (not path.exists() or path.read_bytes().count(b"\n") < 5):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = path.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert 5 <= whole.count(b"\n") < 25
    done = subprocess.run([*warm.command(), *args], capture_output=True, text=True, check=True)
    assert path.read_bytes().startswith(whole)
    keys = [json.dumps(r["key"], sort_keys=True) for r in held(path) if r["kind"] == "batch"]
    assert len(keys) == len(set(keys)) == 24
    assert done.stdout.count("| 12 |") == 2 or "n 12" in done.stdout


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(tmp_path):
    path = tmp_path / "r.jsonl"
    args = ["bench", "-p", "threshold", *SHORT, "-n", "40", "-o", str(path)]
    command = [*warm.command(), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until and (not path.exists() or path.read_bytes().count(b"\n") < 4):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith("interrupted: ")
    assert "of 80 batches are in" in said
    assert "the same command goes on" in said
