"""Tuning: the tests by betting, searching, certifying, the command, and profiles."""

import itertools
import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import unmask
from llada_folder import write
from refusals import refused
from unmask import profiles as profile
from unmask.api import BUNDLED, BUNDLED_NAME
from unmask.cli import app
from unmask.core.errors import RequestError
from unmask.measure import betting, candidates, tune
from unmask.measure import run as batches
from unmask.measure.problems import Item, Source
from unmask.measure.run import Setting

PAGE = Path(__file__).parent.parent / "docs" / "tune.md"


def run(*args):
    return CliRunner().invoke(app, list(map(str, args)), prog_name="unmask")


def draw(rng, lost, gained, *shape):
    """Losses with these rates."""
    u = rng.random(shape)
    return np.where(u < lost, 1, np.where(u < lost + gained, -1, 0))


def passes(plan, losses):
    """Share of the rows that are rejected, as the verdict decides it."""
    path, chance = betting.wealth(plan, losses)
    ends = (path >= plan.goal) | (chance < betting.HOPELESS)
    first = np.where(ends.any(1), ends.argmax(1), losses.shape[1] - 1)
    return (path[np.arange(len(path)), first] >= plan.goal).mean()


# --- betting


@pytest.mark.parametrize(("epsilon", "gained"), [(0.3, 0.0), (0.3, 0.2), (0.15, 0.4)])
def test_wealth_is_a_fair_game_under_the_null(epsilon, gained):
    """All 3^8 sequences: at the boundary the wealth is 1 on average, and it reaches the goal as rarely as it must."""
    level, n, lost = 0.2, 8, epsilon + gained
    plan = betting.plan(epsilon, level, n, gained > 0)
    every = np.array(list(itertools.product((-1, 0, 1), repeat=n)))
    chance = np.prod(np.where(every == 1, lost, np.where(every == -1, gained, 1 - lost - gained)), axis=1)
    path, _ = betting.wealth(plan, every)
    for t in range(n):
        assert chance @ np.exp(path[:, t]) == pytest.approx(1, abs=1e-9)
    reached = chance @ (path >= plan.goal).any(1)
    assert 0.02 < reached <= level


def test_wealth_is_what_the_stakes_make_of_it():
    """A plain loop over one row of losses."""
    plan = betting.plan(0.1, 0.1, 60, True)
    losses = draw(np.random.default_rng(3), 0.08, 0.05, 60)
    path, _ = betting.wealth(plan, losses[None])
    most, now = 1 / 0.9, 1.0
    for t, loss in enumerate(losses):
        at = min(max(int((math.log(now) + 5.0) // (plan.wealth[1] - plan.wealth[0])), 0), len(plan.wealth) - 1)
        stake = plan.stakes[plan.choice[t, at]]
        if now * (1 + most * 0.1) ** (59 - t) < 10:
            stake = most
        now = max(now * (1 + stake * (0.1 - loss)), 1e-300)
        assert math.exp(path[0, t]) == pytest.approx(now, rel=1e-6, abs=1e-200)
        if now < 1e-6:
            break


@pytest.mark.parametrize(("epsilon", "level"), [(0.01, 0.1), (0.01, 0.05), (0.05, 0.1), (0.2, 0.3)])
def test_least(epsilon, level):
    """No loss in ``least`` problems certifies, one problem fewer cannot; nor can one loss in so few."""
    n = betting.least(epsilon, level)
    assert (1 - epsilon) ** n <= level < (1 - epsilon) ** (n - 1)
    for gains in (True, False):
        for more in (0, 1, 40):
            assert betting.verdict(betting.plan(epsilon, level, n + more, gains), [0] * (n + more)).passed
    assert not betting.verdict(betting.plan(epsilon, level, n, True), [0] * (n - 1)).passed
    lost = betting.verdict(betting.plan(epsilon, level, n, False), [1] + [0] * (n - 1))
    assert (lost.passed, lost.over, lost.seen) == (False, True, 1)  # and says so at once


@pytest.mark.parametrize("gained", [0.0, 0.005, 0.03])
def test_error_at_the_boundary(gained):
    """Losses of exactly epsilon are taken for less as often as delta allows, and not much more rarely."""
    plan = betting.plan(0.02, 0.1, 250, gained > 0)
    share = passes(plan, draw(np.random.default_rng(5), 0.02 + gained, gained, 6000, 250))
    assert share <= 0.1 + 3 * math.sqrt(0.09 / 6000)
    assert share >= 0.05


def test_power():
    """Never much less than the exact binomial test of losses alone, far more where gains make up for losses."""
    epsilon, n, rng = 0.01, 600, np.random.default_rng(6)
    plan = betting.plan(epsilon, 0.1, n, True)
    accepted = max(k for k in range(n) if sum(math.comb(n, i) * 0.01**i * 0.99 ** (n - i) for i in range(k + 1)) <= 0.1)
    for lost, gained, at_least in ((0, 0, 1.0), (0.001, 0, 0.95), (0.003, 0, 0.7), (0.006, 0.006, 0.6)):
        losses = draw(rng, lost, gained, 1000, n)
        binomial = ((losses == 1).sum(1) <= accepted).mean()
        share = passes(plan, losses)
        assert share >= max(at_least, binomial - 0.03), (lost, gained, share, binomial)
    assert share > binomial + 0.2


def test_verdict_does_not_depend_on_chunks():
    """What has been decided stays, whatever follows it in the same batch."""
    plan = betting.plan(0.1, 0.1, 60, True)
    for seed in range(20):
        losses = draw(np.random.default_rng(seed), 0.05, 0.02, 60).tolist()
        whole = betting.verdict(plan, losses)
        for stop in range(whole.seen, 61):
            assert betting.verdict(plan, losses[:stop]) == whole
        assert not betting.verdict(plan, losses[: whole.seen - 1]).over
        assert whole.passed == (whole.p_value <= 0.1)


def test_plan_refuses_nonsense():
    with pytest.raises(ValueError, match="epsilon and level"):
        betting.plan(0.0, 0.1, 10, True)


# --- families of tests


def test_holm_is_closed_testing():
    """Rejected by Holm: every set of hypotheses that holds it is rejected by Bonferroni."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = (rng.random(4) ** 3).tolist()
        subsets = [s for k in range(1, 5) for s in itertools.combinations(range(4), k)]
        bad = [all(min(p[i] for i in s) <= 0.1 / len(s) for s in subsets if j in s) for j in range(4)]
        assert tune.holm(p, 0.1) == bad


GOAL = candidates.Goal(0.15, 0.2, 8, 40, 32, 40)
BLANK = Source("blank", [Item("", bool)] * 40)
ONE = Setting("vanilla", "none", 32, 40)


def certified(rows, goal):
    """Which of the candidates with these losses, ``[M, n]``, are certified; in this order."""
    named = [Setting(f"threshold(tau={i})", "none", 32, 40) for i in range(len(rows))]

    def decode(batch, timed):
        own = np.zeros(40, int) if batch.setting == ONE else rows[named.index(batch.setting)]
        return {"correct": (1 - np.maximum(own, 0)).tolist() if batch.setting != ONE else [1] * 40}

    found = [tune.Found(s, 8, 0, 0, 0, 2.0, 4.0) for s in named]
    tested = tune.certify(decode, goal, found, BLANK, lambda *_: None)
    return [named.index(t.found.setting) for t in tested if t.passed], len(tested)


@pytest.mark.parametrize("correction", candidates.CORRECTIONS)
@pytest.mark.parametrize("correlated", [0.0, 0.8])
def test_family_wise_error(correction, correlated):
    """Four candidates that lose exactly epsilon; any of them certified is an error."""
    rng, runs, errors = np.random.default_rng(11), 250, 0
    goal = candidates.Goal(0.15, 0.2, 8, 40, 32, 40, correction=correction)
    for _ in range(runs):
        shared, own = rng.random(40), rng.random((4, 40))
        u = np.where(rng.random((4, 40)) < correlated, shared, own)
        errors += bool(certified((u < 0.15).astype(int), goal)[0])
    assert errors / runs <= 0.2 + 3 * math.sqrt(0.16 / runs)
    assert errors  # the rule is not one that never rejects


@pytest.mark.parametrize("correction", candidates.CORRECTIONS)
def test_good_candidates_are_certified(correction):
    rng, goal = np.random.default_rng(12), candidates.Goal(0.15, 0.2, 8, 40, 32, 40, correction=correction)
    found = [certified(draw(rng, 0.01, 0.0, 3, 40), goal)[0] for _ in range(60)]
    assert sum(len(f) for f in found) / 180 > 0.85


def test_a_fixed_sequence_ends_at_the_first_failure():
    zero, lossy = np.zeros(40, int), np.ones(40, int)
    assert certified([zero, lossy, zero], GOAL) == ([0], 2)
    holm = candidates.Goal(0.15, 0.2, 8, 40, 32, 40, correction="holm")
    assert certified([zero, lossy, zero], holm) == ([0, 2], 3)


# --- searching


def found(speed, lost=0, gained=0, differ=0, n=60, nfe=10.0):
    return tune.Found(Setting(f"threshold(tau={speed})", "none", 32), n, lost, gained, differ, speed, nfe)


def test_the_front_is_in_order_of_risk():
    goal = candidates.Goal(0.01, 0.1, 60, 600, 32)
    safe, better, quick, lossy = found(1.5), found(3.0, differ=2), found(5.0, differ=4), found(9.0, lost=3, differ=9)
    slow, dominated, near, early = found(0.8), found(2.9, differ=3), found(3.1, differ=3), found(20.0, n=16)
    ranked = tune.front([lossy, slow, near, quick, safe, early, dominated, better], goal)
    assert ranked == [safe, better, quick, lossy]
    assert tune.front([slow], goal) == []


def test_the_front_has_slower_ones_to_fall_back_on():
    """All without a difference: kept are those that take more forwards for being slower, some way apart."""
    goal = candidates.Goal(0.01, 0.1, 60, 600, 32)
    steps = [found(s, nfe=40 / s) for s in (1.6, 3.0, 6.0, 6.9, 8.0, 12.0)]
    wasteful = found(5.0, nfe=4.0)  # as few forwards as one that is twice as fast
    assert tune.front([*steps, wasteful], goal) == [steps[1], steps[2], steps[4], steps[5]]


def test_holm_tests_no_more_than_delta_allows():
    many = [found(1.5 * 1.2**i, differ=i) for i in range(12)]
    goal = candidates.Goal(0.01, 0.1, 60, 300, 32, correction="holm")
    ranked = tune.front(many, goal)
    assert 0 < len(ranked) < 12
    assert betting.least(0.01, 0.1 / len(ranked)) <= 300 < betting.least(0.01, 0.1 / (len(ranked) + 1))
    assert len(tune.front(many, candidates.Goal(0.01, 0.1, 60, 300, 32))) == 12


def test_losses():
    vanilla = [{"correct": [1, 0], "digest": ["a", "b"]}, {"correct": [1], "digest": ["c"]}]
    rows = [{"correct": [0, 1], "digest": ["x", "b"]}, {"correct": [1], "digest": ["z"]}]
    assert tune.losses("accuracy", vanilla, rows) == [1, -1, 0]
    assert tune.losses("agreement", vanilla, rows) == [1, 0, 1]


def test_sets_are_disjoint_and_reproducible(tmp_path):
    goal = candidates.Goal(0.05, 0.1, 10, 50, 32)
    for task in ("sudoku", str(numbers(tmp_path / "p.jsonl", 80))):
        parts = candidates.sets(task, goal)
        one, other = ({i.prompt for i in s.items} for s in (parts.search, parts.calibration))
        assert (len(one), len(other)) == (10, 50) and not one & other
        again = candidates.sets(task, goal)
        assert [i.prompt for i in again.calibration.items] == [i.prompt for i in parts.calibration.items]
        assert candidates.sets(task, candidates.Goal(0.05, 0.1, 10, 50, 32, seed=1)).search.split != parts.search.split
    before = parts.search.split
    numbers(tmp_path / "p.jsonl", 80, answer="-")
    assert candidates.sets(task, goal).search.split != before  # other answers are another task
    assert parts.search.items[0].prompt != "0+1" or parts.search.items[1].prompt != "1+1"  # shuffled


@pytest.mark.parametrize(("gen_length", "count"), [(32, 95), (256, 196)])
def test_every_candidate_of_the_grid_is_one(gen_length, count):
    lm = unmask.load()
    goal = candidates.Goal(0.2, 0.3, 1, 6, gen_length)
    parts = candidates.sets("sudoku", goal)
    grid = candidates.grid(gen_length)
    assert len(candidates.settings(grid, goal, lm, parts)) == len(grid) == count


def numbers(path, n, **more):
    path.write_text("".join(json.dumps({"prompt": f"{i}+1", "answer": str(i + 1), **more}) + "\n" for i in range(n)))
    return path


# --- the command

SMALL = (
    *(
        "tune",
        "--task",
        "waiting_line",
        "--epsilon",
        20,
        "--delta",
        0.3,
        "--n-search",
        4,
        "--n-calibration",
        8,
        "-n",
        16,
    ),
    *("--batch-size", 4, "--objective", "nfe"),
    *("--candidate", "threshold(tau=0.95)|none", "--candidate", "threshold(tau=0.9)|dual"),
    *("--candidate", "threshold(tau=0)|none"),
)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    result = run(*SMALL, "-o", folder / "profile.json", "--ledger", folder / "runs" / "tune.jsonl", "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return folder, json.loads(result.stdout)


def test_command(tuned):
    folder, printed = tuned
    made = json.loads((folder / "profile.json").read_text())
    listed = {f"{c['policy']}|{c['cache']}": c for c in printed["candidates"]}
    assert {**made, "candidates": printed["candidates"]} == {"profile": 1, **printed}
    assert made["certified"] and made["policy"].startswith("threshold") and made["policy"] != "threshold(tau=0.0)"
    assert (made["model"], made["task"], made["split"], made["gen_length"]) == (
        BUNDLED_NAME,
        "waiting_line",
        "valid",
        16,
    )
    assert "With confidence 70 %" in made["guarantee"] and "less than 20 points" in made["guarantee"]
    chosen = listed[f"{made['policy']}|{made['cache']}"]
    assert made["speed"]["against_vanilla"] == chosen["speed"] > 2
    calibration = chosen["calibration"]
    assert 6 <= calibration["n"] <= 8
    assert calibration["e_value"] >= 1 / 0.3 and calibration["passed"]
    assert 0 < made["vanilla_right"] <= 4
    greedy = listed["threshold(tau=0.0)|none"]
    assert greedy["search"]["differ"] > 0
    passed = [c for c in listed.values() if c["calibration"] and c["calibration"]["passed"]]
    assert chosen["speed"] == max(c["speed"] for c in passed)


@pytest.mark.parametrize(
    ("delta", "said"), [(0.05, "95 %"), (1.4e-6, "99.99986 %"), (5e-9, "1 - 5e-09"), (1e-300, "1 - 1e-300")]
)
def test_the_guarantee_claims_no_more_than_was_asked_for(delta, said):
    """Rounding never makes it certain."""
    goal = SimpleNamespace(epsilon=0.01, delta=delta, target="accuracy", gen_length=8)
    text = tune.guarantee("t", goal, SimpleNamespace(chosen=True))
    assert text.startswith(f"With confidence {said}: on problems")
    assert "100 %" not in text


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed(tuned, tmp_path, monkeypatch):
    """Cut anywhere, the ledger gives the same profile, and what it held is not decoded again."""
    folder, printed = tuned
    whole = (folder / "runs" / "tune.jsonl").read_bytes()
    decoded, decode = [], batches.decode

    def counted(lm, batch):
        decoded.append(batch)
        return decode(lm, batch)

    monkeypatch.setattr(batches, "decode", counted)
    held = whole.count(b'"kind":"batch"')
    for size in (len(whole), len(whole) * 2 // 3):
        decoded.clear()
        path = tmp_path / f"{size}.jsonl"
        path.write_bytes(whole[:size])
        kept = whole[:size].rpartition(b"\n")[0].count(b'"kind":"batch"')
        result = run(*SMALL, "-o", tmp_path / "p.json", "--ledger", path, "--json")
        assert result.exit_code == 0, result.stderr
        again = json.loads(result.stdout)
        assert {**again, "command": ""} == {**printed, "command": ""}
        assert len([b for b in decoded if b.n > 1]) == held - kept
    assert decoded  # the second was cut


def test_interrupted(tmp_path, monkeypatch):
    """What was decoded stays, no profile is written, and the message says how to go on."""
    decode, left = batches.decode, [2]

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return decode(*args)

    monkeypatch.setattr(batches, "decode", interrupted)
    result = run(*SMALL, "-o", tmp_path / "p.json")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == f"interrupted: the same command goes on from {tmp_path}/p.json.ledger.jsonl\n"
    assert [p.name for p in tmp_path.iterdir()] == ["p.json.ledger.jsonl"]
    assert (tmp_path / "p.json.ledger.jsonl").read_text().count('"kind":"batch"') == 2


def test_table_and_vanilla_when_nothing_passes(tmp_path):
    out = tmp_path / "p.json"
    few = ("--epsilon", 10, "--n-calibration", 16, "--n-search", 2, "--batch-size", 4, "-n", 16, "--delta", 0.3)
    result = run(
        "tune", "--task", "waiting_line", "--candidate", "threshold(tau=0)|none", *few, "-o", out, "--agreement"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    made = json.loads(out.read_text())
    assert (made["policy"], made["cache"], made["certified"], made["loss"]) == ("vanilla", "none", False, None)
    assert "No candidate was certified" in result.stdout
    assert (tmp_path / "p.json.ledger.jsonl").exists()


def test_agreement_needs_no_answers(tmp_path):
    """A file of prompts alone; what differs from vanilla in no text is certified, for certain of itself."""
    file, out = tmp_path / "prompts.jsonl", tmp_path / "p.json"
    file.write_text("".join(json.dumps({"prompt": f"Amy has {i} apples."}) + "\n" for i in range(10)))
    same = ("--candidate", "vanilla(block_length=none)|none", "--candidate", "threshold(tau=2)|none")
    small = ("--epsilon", 30, "--delta", 0.3, "--n-search", 2, "--n-calibration", 8, "-n", 4, "--batch-size", 8)
    result = run("tune", "--task", file, "--agreement", *same, *small, "-o", out, "--json", "--objective", "positions")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["candidates"]
    assert [r["search"]["differ"] for r in rows] == [0, 0]  # four tokens: one block
    result = run("tune", "--task", file, *same, *small, "-o", out)
    assert result.exit_code == 2
    assert 'line 1: no "answer"' in result.stderr


# --- profiles


def test_profile_in_generate(tuned):
    folder, printed = tuned
    file = folder / "profile.json"
    question = "Solve the sudoku:\n0214\n4132\n1420\n0340"
    with_profile = run("generate", question, "--profile", file, "--json")
    explicit = run("generate", question, "-p", printed["policy"], "-c", printed["cache"], "-n", 16, "--json")
    assert with_profile.exit_code == 0, with_profile.stderr
    one, other = (json.loads(r.stdout) for r in (with_profile, explicit))
    assert all(one[key] == other[key] for key in ("tokens", "steps", "policy", "cache"))
    assert len(json.loads(run("generate", question, "--profile", file, "-n", 9, "--json").stdout)["tokens"]) == 9


def test_profile_in_python(tuned):
    folder, printed = tuned
    lm = unmask.load()
    given = unmask.profile(folder / "profile.json", lm)
    assert given == {key: printed[key] for key in ("policy", "cache", "gen_length")}
    (result,) = lm.generate("Solve the sudoku:\n0214\n4132\n1420\n0340", **given)
    assert len(result.tokens) == 16
    assert profile.fingerprint(lm) == profile.fingerprint(unmask.load(dtype="float32"))


def test_profile_of_another_model(tuned, tmp_path):
    folder, _ = tuned
    other = write(tmp_path / "llada")
    result = run("generate", "Hi", "--profile", folder / "profile.json", "--model", other)
    assert result.exit_code == 2
    assert re.fullmatch(rf"error: \S+profile.json is a profile of another model \({BUNDLED_NAME}\).*\n", result.stderr)
    with pytest.raises(RequestError, match="another model"):
        unmask.profile(folder / "profile.json", unmask.load(other))


def test_profile_and_what_it_was_not_made_for(tuned, tmp_path):
    """Another dtype, length or name of the same weights, a text that ends elsewhere: one line says so; another
    temperature is refused.
    """
    file, own = tuned[0] / "profile.json", tuned[1]["dtype"]
    other = "float64" if own == "float32" else "float32"
    args = ("generate", "Hi", "--profile", file)
    assert run(*args).stderr == ""
    (tmp_path / "moved").symlink_to(BUNDLED)
    for more, said in ((["--dtype", other], f"dtype {own}, not {other}"),
                       (["--model", tmp_path / "moved"], f"model {BUNDLED_NAME}, not {tmp_path / 'moved'}"),
                       (["-n", 4], "gen_length 16, not 4"), (["-n", 16], ""), (["--no-chat"], "the chat template"),
                       (["--ignore-eos", "--stop", "4"], "the early stop, no stop strings")):  # fmt: skip
        result = run(*args, *more)
        assert result.exit_code == 0
        expected = f"warning: {file} was made with {said}; its guarantee is for that\n" if said else ""
        assert result.stderr == expected
    refused(run(*args, "--temperature", 0.5), "--profile", "--temperature", 0.5)


def test_a_generator_of_reasoning_gym(tmp_path):
    """Its problems are drawn, split and certified like those of a family; a profile says which version made them."""
    file = tmp_path / "p.json"
    small = ("--task", "gym:chain_sum", "--agreement", "--epsilon", 50, "--delta", 0.3, "--n-search", 2)
    more = ("--n-calibration", 4, "-n", 8, "--batch-size", 4, "--objective", "nfe", "--candidate", "threshold|none")
    result = run("tune", *small, *more, "-o", file, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    made = json.loads(result.stdout)
    assert (made["task"], made["split"], made["vanilla_right"]) == ("gym:chain_sum", None, None)
    assert made["candidates"][0]["search"]["n"] == 2
    keys = [json.loads(line)["key"] for line in Path(f"{file}.ledger.jsonl").read_text().splitlines()[1:]]
    assert {key["split"].split()[0] for key in keys} == {"search", "calibration"}
    parts = candidates.sets("gym:chain_sum", candidates.Goal(0.5, 0.3, 2, 4, 8))
    prompts = [item.prompt for part in (parts.search, parts.calibration) for item in part.items]
    assert len(set(prompts)) == 6
    assert all(item.check("") is False for item in parts.search.items)
    refused(run("tune", "--task", "gym:absent", "-o", file), "gym:absent")


@pytest.mark.parametrize("option", [("-p", "vanilla"), ("--cache", "none"), ("--policy", "slowfast")])
def test_profile_and_its_parts_exclude_each_other(tuned, option):
    result = run("generate", "Hi", "--profile", tuned[0] / "profile.json", *option)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --profile gives the ")


GOOD = {
    "profile": 1,
    "model": "m",
    "fingerprint": "f",
    "dtype": "float32",
    "policy": "vanilla",
    "cache": "none",
    "gen_length": 8,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not a profile of unmask tune"),
        ("[" * 100_000, "is not a profile of unmask tune"),
        ("[1]", 'expected a JSON object with "profile": 1'),
        ({"a": 1}, 'expected a JSON object with "profile": 1'),
        (GOOD | {"profile": 2}, "profile version 2; this unmask reads version 1"),
        (GOOD | {"policy": 3}, '"policy" must be a text, got 3'),
        (GOOD | {"policy": "fastest"}, "unknown policy 'fastest'"),
        (GOOD | {"cache": "dual("}, "dual("),
        (GOOD | {"gen_length": "8"}, "\"gen_length\" must be an integer, got '8'"),
        (GOOD | {"gen_length": -1}, '"gen_length" must be greater than or equal to 1, got -1'),
        ({k: v for k, v in GOOD.items() if k != "fingerprint"}, 'no "fingerprint"'),
        (GOOD, "is a profile of another model (m)"),
    ],
)
def test_broken_profiles(tmp_path, content, message):
    file = tmp_path / "p.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    result = run("generate", "Hi", "--profile", file)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert str(file) in result.stderr and message in result.stderr


def test_the_smallest_epsilon_has_a_least_number():
    rng = np.random.default_rng(0)
    for epsilon in 10 ** rng.uniform(-30, -14, 200):
        assert betting.least(epsilon, 0.1) == pytest.approx(-math.log(0.1) / epsilon)


def test_a_profile_replaces_files_alone(tmp_path):
    """Not a device, which a rename would put a file in place of; what a link points to, not the link."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="pipe: not a regular file"):
        profile.write(tmp_path / "pipe", {})
    assert not (tmp_path / "pipe").is_file()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    profile.write(tmp_path / "link", {"a": 1})
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "there").read_text()) == {"profile": 1, "a": 1}


@pytest.mark.parametrize("option", ["--output", "--trace"])
def test_a_profile_is_not_written_over(option, tmp_path):
    file = tmp_path / "p.json"
    profile.write(file, GOOD)
    before = file.read_bytes()
    result = run("generate", "Hi", "--profile", file, option, file)
    assert (result.exit_code, result.stderr) == (2, f"error: {option} and --profile are the same file {file}\n")
    assert file.read_bytes() == before


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epsilon", 0], "epsilon must be above 0 and below 100 points, got 0"),
        (["--epsilon", "nan"], "epsilon must be above 0 and below 100 points, got nan"),
        (["--epsilon", 120], "got 120"),
        (["--delta", 1], "delta must be above 0 and below 1, got 1"),
        (["--epsilon", 1, "--n-calibration", 200], "problems at delta 0.1, even if none is lost: it takes 230"),
        (["--objective", "joy"], "unknown objective 'joy'; accepted: tokens_per_second, nfe, positions"),
        (["--correction", "none"], "unknown correction 'none'; accepted: fixed-sequence, holm"),
        (["--candidate", "threshold"], "--candidate: expected POLICY|CACHE"),
        (["--candidate", "fast|none"], "unknown policy 'fast'"),
        (["--candidate", "slowfast|fast"], "unknown cache 'fast'"),
        (["--candidate", "vanilla|none"], "give another candidate"),
        (["--task", "poems"], "unknown task 'poems'"),
        (["--task", "absent.jsonl"], "cannot read absent.jsonl"),
        (["--task", "{few}"], "has 5 distinct problems; searching with 60 and calibrating with 600 takes 660"),
        (["--task", "{odd}", "--n-search", 1, "--n-calibration", 6, "--epsilon", 50], 'line 1: "prompt" must'),
        (["--gen-length", 100_000], "prompt 0"),
        (["-o", "{folder}/absent/p.json"], "cannot write"),
        (["-o", "{folder}/p", "--ledger", "{folder}/p"], "--output and --ledger are the same file"),
        (["--ledger", "{few}"], "few.jsonl line 1: not JSON"),
        (["--ledger", "{folder}"], "cannot write"),
        (["--ledger", "{folder}/pipe"], "pipe: not a regular file"),
        (["-o", "{folder}/pipe"], "pipe: not a regular file"),
        (["-o", ""], "the name of a file to write is empty"),
        (["--ledger", "{few}/r.jsonl"], "cannot write"),
        (["--task", "{few}", "--ledger", "{few}"], "--ledger and --task are the same file"),
        (["--task", "{few}", "--output", "{few}"], "--output and --task are the same file"),
        (["--candidate", "threshold|dual|full"], "leave out |full"),
        (["--model", "absent"], "absent"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path, options, message):
    """One line, and nothing is written."""
    few, odd = numbers(tmp_path / "few.jsonl", 5), tmp_path / "odd.jsonl"
    odd.write_text("".join(json.dumps({"prompt": i, "answer": "1"}) + "\n" for i in range(9)))
    if options[0] == "--ledger":
        few.write_text("no json\n")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    filled = [str(o).format(few=few, odd=odd, folder=tmp_path) for o in options]
    task = [] if "--task" in options else ["--task", "sudoku"]
    out = [] if "-o" in options else ["-o", tmp_path / "profile.json"]
    result = run("tune", *task, *out, *filled)
    assert result.exit_code == 2, result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_options_are_documented():
    page, text = PAGE.read_text(encoding="utf-8"), run("tune", "--help").stdout
    options = set(re.findall(r"--[a-z][a-z-]+", text)) - {"--help"}
    assert len(options) > 12
    assert not {o for o in options if f"`{o}" not in page}
