"""The autoregressive model that decoders are measured beside: what it says, what it costs, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import unmask
from refusals import names, refuses
from unmask.cli import app
from unmask.core.errors import ModelError, RequestError, SpecError
from unmask.measure import autoregressive, run
from unmask.measure.autoregressive import Autoregressive
from unmask.measure.problems import Item, Source, source
from unmask.measure.run import Batch, Setting
from unmask.measure.summary import summarise, tallies

SHIPPED = Path(unmask.__file__).parent / "assets" / "verifier"
GREEDY = "autoregressive(unmask-tiny)"
RECORD = ["-t", "record", "--split", "valid", "--gen-length", "64"]


@pytest.fixture(scope="module")
def lm():
    return unmask.load(dtype="float32")


@pytest.fixture(scope="module")
def causal(lm):
    return Autoregressive.beside(lm, "unmask-tiny")


def network(causal):
    """The plain network, by ``transformers``, on the tokens so far."""
    found = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    return lambda ids: found(torch.tensor([ids])).logits[0, -1]


def cli(*args):
    return CliRunner().invoke(app, list(map(str, args)), prog_name="unmask")


@torch.inference_mode()
def argmax_loop(causal, prompt: list[int], gen_length: int) -> list[int]:
    """The likeliest token again and again, everything read anew each time, up to the end of text."""
    said: list[int] = []
    logits = network(causal)
    while len(said) < gen_length:
        token = int(logits(prompt + said).argmax())
        if token in causal.eos:
            break
        said.append(token)
    return said


def test_a_spec_names_a_model():
    assert autoregressive.model_of(autoregressive.spec("org/model (1)")) == "org/model (1)"
    assert autoregressive.model_of("threshold(tau=0.9)") is None
    assert autoregressive.model_of("autoregressive") is None
    assert autoregressive.parts_of(autoregressive.spec("a/b", "ngram(n=2)")) == ("a/b", "ngram(n=2)")
    with refuses(SpecError, "'absent'"):
        autoregressive.parts_of("autoregressive(a, drafter=absent)")


@pytest.mark.parametrize("n", [1, 3])
def test_it_generates_what_a_naive_loop_generates(n, causal):
    """Prompts of several lengths, padded on the left; one is cut off by gen_length."""
    problems = source("word_problem", 3, "valid")
    prompts = [causal.text.encode(item.prompt) for item in problems.items]
    assert len({len(p) for p in prompts}) > 1
    expected = [argmax_loop(causal, p, 24) for p in prompts]
    assert {len(ids) == 24 for ids in expected} == {True, False}
    found = [answer for first in range(0, 3, n) for answer in causal.answers(problems, 24, first, n)[0]]
    assert [a.text for a in found] == [causal.text.decode(ids) for ids in expected]
    assert [a.tokens for a in found] == [len(ids) for ids in expected]
    assert [a.nfe for a in found] == [min(len(ids) + 1, 24) for ids in expected]
    assert [a.positions for a in found] == [len(p) + a.nfe - 1 for p, a in zip(prompts, found, strict=True)]


def test_forwards_are_those_of_the_network(lm, causal):
    """One for the prompt, then one a token; the prompt is read once."""
    shapes = []
    network = causal.model.network(causal.device, causal.dtype)
    hook = network.embed.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[1]))
    try:
        row = run.decode(lm, Batch(Setting(GREEDY, "none", 64), source("record", 1, "valid"), 0, 1))
    finally:
        hook.remove()
    assert row["nfe"] == [len(shapes)] == [row["tokens"][0] + 1]
    assert row["positions"] == [sum(shapes)]
    assert set(shapes[1:]) == {1}
    assert 0 < row["first_token"][0] < row["seconds"]
    assert 0 < row["model_seconds"] < row["seconds"]


def test_without_early_stop_everything_is_filled(causal):
    problems = source("record", 2, "valid")
    stopped, full = (causal.answers(problems, 48, 0, 2, eos_stop=stop)[0] for stop in (True, False))
    assert [a.nfe for a in full] == [48, 48]
    assert [(a.text, a.tokens) for a in full] == [(a.text, a.tokens) for a in stopped]
    assert max(a.nfe for a in stopped) < 48


def test_it_solves_word_problems_and_is_not_run_again(tmp_path):
    path = tmp_path / "r.jsonl"
    args = ["bench", "--autoregressive", "unmask-tiny", "-p", "threshold", "-t", "word_problem", "--split", "valid",
            "--gen-length", 64, "--batch-size", 5, "--baseline", f"{GREEDY}|none", "-o", path]  # fmt: skip
    assert cli(*args, "-n", 5).exit_code == 0
    before = path.read_bytes()
    done = cli(*args, "-n", 10, "--json")
    assert done.exit_code == 0, done.stderr
    assert path.read_bytes().startswith(before)
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines() if '"batch"' in line[:20]]
    assert sorted((k["policy"], k["first"], k["n"]) for k in keys) == [
        (policy, first, 5) for policy in (GREEDY, "threshold") for first in (0, 5)
    ]
    base, other = map(json.loads, done.stdout.splitlines())
    assert (base["policy"], base["cache"], base["n"], base["speedup"]) == (GREEDY, "none", 10, 1)
    assert base["accuracy"] > 0.5
    assert base["tpf"] < 1
    assert other["shared"] == 10 and other["nfe"] < base["nfe"]
    assert other["speedup"] == pytest.approx(other["rate"] / base["rate"])
    assert cli(*args, "-n", 10, "--json").stdout == done.stdout, "nothing was left to run"


def test_with_a_drafter_it_says_the_same_in_fewer_passes(tmp_path):
    """Passes and positions are those of its own network; results say which drafter it was."""
    drafters = ["ngram", "space", "chimera", "specdiff(gamma=8)"]
    args = ["bench", "--autoregressive", "unmask-tiny", *RECORD, "-n", 2, "--batch-size", 2, "--baseline", "-",
            "-o", tmp_path / "r.jsonl", *(word for own in drafters for word in ("--drafter", own))]  # fmt: skip
    done = cli(*args)
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()][1:]
    plain, *others = sorted(rows, key=lambda row: len(row["key"]["policy"]))
    assert plain["key"]["policy"] == GREEDY
    assert {autoregressive.parts_of(row["key"]["policy"])[1].partition("(")[0] for row in others} == {
        own.partition("(")[0] for own in drafters
    }
    for row in others:
        assert (row["digest"], row["tokens"], row["correct"]) == (plain["digest"], plain["tokens"], plain["correct"])
        assert all(a < b for a, b in zip(row["nfe"], plain["nfe"], strict=True))
        assert 0 < row["first_token"][0] < row["seconds"]
    assert cli(*args).stdout == done.stdout, "nothing was left to run"


def test_positions_with_a_drafter_are_those_of_the_network(lm):
    drafted = Autoregressive.beside(lm, "unmask-tiny", "ngram")
    shapes = []
    network = drafted.model.network(drafted.device, drafted.dtype)
    hook = network.embed.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[1]))
    try:
        [one], _ = drafted.answers(source("record", 1, "valid"), 64, 0, 1)
        [full], _ = drafted.answers(source("record", 1, "valid"), 40, 0, 1, eos_stop=False)
    finally:
        hook.remove()
    assert one.nfe + full.nfe == len(shapes)
    assert one.positions + full.positions == sum(shapes)
    assert full.text == one.text


def test_report_takes_it_as_any_setting(tmp_path):
    path, folder = tmp_path / "r.jsonl", tmp_path / "page"
    args = ["--autoregressive", "unmask-tiny", "-p", "threshold", "--baseline", "-", *RECORD, "-n", 1, "-o", path]
    assert cli("bench", *args).exit_code == 0
    done = cli("report", path, "-o", folder, "--baseline", f"{GREEDY}|none")
    assert done.exit_code == 0, done.stderr
    first, second = json.loads((folder / "figures.json").read_text())
    assert (first["policy"], first["speedup"], second["policy"]) == (GREEDY, 1, "threshold")
    assert f"| `{GREEDY}` |" in (folder / "tables.md").read_text()
    by_spec = summarise(tallies([json.loads(line) for line in path.read_text().splitlines()]), (GREEDY, "none", True))
    assert {f.setting.policy: f.speedup for f in by_spec}[GREEDY] == 1


def folder_without(tmp_path: Path, *names: str) -> Path:
    """A copy of the shipped model without some of its files."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "causal", ignore=lambda _, found: set(names) & set(found)))


def test_a_model_in_a_folder_is_the_same_model(lm, tmp_path):
    folder = folder_without(tmp_path)
    problems = source("record", 1, "valid")
    here, there = (run.decode(lm, Batch(Setting(f"autoregressive({name})", "none", 64), problems, 0, 1))
                   for name in ("unmask-tiny", folder))  # fmt: skip
    assert here["digest"] == there["digest"]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--autoregressive", "/none"], ["'/none'"]),
        (["--autoregressive", ""], ["''"]),
        (["--autoregressive", unmask.__file__], [unmask.__file__]),
        (["--autoregressive", str(SHIPPED.parent / "tiny")], ["LLaDAModelLM"]),
        (["--autoregressive", "unmask-tiny", "--temperature", "0.5"], ["record", "autoregressive(unmask-tiny)"]),
        (["--pair", f"{GREEDY}|dual"], ["none", "'dual'"]),
        (["--autoregressive", "unmask-tiny", "--gen-length", "2040"], ["record", "prompt 0"]),
        (["-p", GREEDY], ["policy", "'autoregressive'"]),
        (["-p", "threshold", "--drafter", "ngram"], ["--drafter", "--autoregressive"]),
        (["--autoregressive", "unmask-tiny", "--drafter", "nothing"], ["'nothing'", "ngram"]),
        (["--autoregressive", "unmask-tiny", "--drafter", "swift(ratio=0.1)"], ["swift", "ratio"]),
    ],
)
def test_bench_refuses(args, named, tmp_path):
    """In one line, before anything is decoded."""
    done = cli("bench", *RECORD[:4], "-n", 1, "--baseline", "-", "-o", tmp_path / "r.jsonl", *args)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    names(done.stderr, *named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors", "config.json"])
def test_incomplete_folders(missing, lm, tmp_path):
    with refuses(ModelError, missing):
        Autoregressive.beside(lm, str(folder_without(tmp_path, missing)))


def test_prompts_that_it_cannot_take(causal):
    """Ids are of the other model's tokenizer; a conversation is text."""
    with refuses(RequestError, "prompt 1", "ids"):
        causal.check(Source("s", [Item("a", bool), Item([1, 2], bool)]), 8)
    with refuses(RequestError, "prompt 0"):
        causal.check(Source("s", [Item("", bool)]), 8)
    talk = [Item([{"role": "user", "content": "Hello"}], bool), Item("Hello", bool)]
    one, two = causal.answers(Source("s", talk), 8, 0, 2)[0]
    assert one.text == two.text
