"""The scripts of recipes/slowfast: what they measure, and that docs/results/slowfast.md is what they write."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest

import unmask
from refusals import refuses
from unmask.api import BUNDLED_NAME
from unmask.measure.problems import source

ROOT = Path(__file__).parents[1]
RECIPE, DOCS = ROOT / "recipes" / "slowfast", ROOT / "docs" / "results"
PAGE = runpy.run_path(str(RECIPE / "page.py"), run_name="page")
STAGES = sys.modules["stages"]
MARKS = ("table 1024", "families 1024", "table 256", "families 256", "thresholds", "parts", "signals", "blocks",
         "block parts", "suffix", "lengths")  # fmt: skip


def script(name, *args, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    runpy.run_path(str(RECIPE / name), run_name="__main__")


def between(text, mark):
    """What stands between two marks."""
    (found,) = re.findall(rf"<!-- {mark} -->\n(.*?)\n?<!-- /{mark} -->", text, re.DOTALL)
    return found


# --- the page


def test_tables_are_those_of_the_results():
    text = (DOCS / "slowfast.md").read_text(encoding="utf-8")
    tables = dict(PAGE["tables"](json.loads((DOCS / "slowfast.json").read_text())))
    assert {"thresholds", "parts", "signals"} <= set(tables) <= set(MARKS)
    for mark in MARKS:
        assert between(text, mark) == tables.get(mark, ""), "run recipes/slowfast/page.py"
    for picture in re.findall(r"\]\((slowfast-[a-z]+\.png)\)", text):
        assert (DOCS / picture).read_bytes().startswith(b"\x89PNG")


RUN = {"kind": "run", "version": 1, "run": "r", "model": "m", "device": "d", "dtype": "float32", "threads": 1,
       "torch": "2", "unmask": "0", "commit": None, "command": "unmask bench"}  # fmt: skip


def line(policy, first, right, tokens, cpu, task="t", cache="none", stop=True):
    key = {"policy": policy, "cache": cache, "gen_length": 256, "batch_size": 1, "eos_stop": stop, "temperature": 0.0,
           "task": task, "split": None, "seed": 0, "first": first, "n": 1}  # fmt: skip
    return {"kind": "batch", "version": 1, "run": "r", "key": key, "correct": [right], "nfe": [10], "tokens": [tokens],
            "positions": [100.0], "first_token": [0.1], "digest": ["d"], "seconds": 2 * cpu, "cpu_seconds": cpu,
            "model_seconds": cpu, "peak_bytes": None}  # fmt: skip


HEADLINE = [
    RUN,
    *(line("vanilla", i, 1, 20, cpu) for i, cpu in enumerate((1.0, 4.0))),
    line("vanilla", 0, 1, 20, 8.0, stop=False),
    *(line("slowfast", i, i, 20, cpu) for i, cpu in enumerate((0.5, 0.25))),
    *(line("autoregressive(shipped)", i, 1, 20, 0.5) for i in range(2)),
    *(line("slowfast", i, 1, 30, 1.0, task="u") for i in range(2)),
    *(line("vanilla", i, 1, 30, 2.0, task="u") for i in range(2)),
    line("vanilla", 0, 1, 30, 10.0, task="u", stop=False),
    *(line("autoregressive(shipped)", i, 1, 30, 1.0, task="u") for i in range(2)),
]
PHASE = {"forwards": 2, "positions": 300.0, "committed": 2, "seconds": 1.0}


def stage(canvas, first, slow, fast, finished=1):
    key = {"policy": "slowfast", "canvas": canvas, "task": "t", "split": "test", "first": first, "most": 100}
    return {"kind": "stage", "version": 1, "run": "r", "key": key, "correct": finished, "finished": finished,
            "tokens": 9, "slow": PHASE | slow, "fast": PHASE | fast}  # fmt: skip


@pytest.fixture
def docs(tmp_path):
    """A page of marks alone, and files of results beside it."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "slowfast.md").write_text("".join(f"<!-- {m} -->\n<!-- /{m} -->\nwords\n" for m in MARKS))
    lengths = [RUN, stage(128, 0, {}, {"seconds": 3.0}), stage(128, 1, {"forwards": 8}, {"forwards": 0, "seconds": 0})]
    for name, rows in {"headline-256": HEADLINE, "lengths": [*lengths, stage(256, 0, {}, {}, finished=0)]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_page_from_files_by_hand(docs, tmp_path, monkeypatch):
    script("page.py", tmp_path / "headline-256.jsonl", "--docs", docs, monkeypatch=monkeypatch)
    text = (docs / "slowfast.md").read_text()
    rows = {row[2:-2].split(" | ")[0]: row[2:-2].split(" | ") for row in between(text, "table 256").splitlines()}
    head = rows["method"]
    fast = dict(zip(head, rows["`slowfast`"], strict=True))
    # of all 4 problems 100 tokens in 2.75 s against 9 s; of the two that vanilla filled, 50 in 1.5 s against 18 s
    assert (fast["tokens/CPU s"], fast["against vanilla, early stop"]) == ("36.4", "3.27x")
    assert fast["against vanilla as published"] == "12.0x"
    assert fast["against autoregressive"] == "1.09x"
    assert fast["score against vanilla"].startswith("-25.0 (")
    assert dict(zip(head, rows["`vanilla`, as published"], strict=True))["n"] == "2"
    assert "| t | `vanilla`, as published | 1 | 2.50 | 1.00x | 100.00 |" in between(text, "families 256")
    assert text.count("words\n") == len(MARKS)
    before = between(text, "table 256")
    parts = HEADLINE[:3], [RUN, *HEADLINE[3:]]
    for name, rows in zip("ab", parts, strict=True):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"headline-256={tmp_path / name}" for name in "ab"]
    script("page.py", *files, tmp_path / "lengths.jsonl", "--docs", docs, monkeypatch=monkeypatch)
    text = (docs / "slowfast.md").read_text()
    assert between(text, "table 256") == before, "two files of one part are pooled"
    script("page.py", "--docs", docs, monkeypatch=monkeypatch)
    assert (docs / "slowfast.md").read_text() == text, "what is not given stays"
    cells = [row[2:-2].split(" | ") for row in between(text, "lengths").splitlines()[4:6]]
    assert cells[0][0] == "128" and cells[0][2:6] == ["2", "100.0 (34.2 - 100.0)", "0", "6.0"]
    assert cells[0][6:9] == [f"{100 * 10 / 12:.0f} %", "50 %", f"{100 * 2 / 5:.0f} %"]
    assert cells[0][9:] == ["200", "1500"]
    assert cells[1][4] == "1", "one was given up"
    assert "\nTimes are wall time." in text, "older files know no other"
    assert {p.name for p in docs.glob("*.png")} == {"slowfast-lengths.png"}, "one gen_length is no curve"


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("other.jsonl", "", ["thresholds", "parts"]),
        ("suffix.jsonl", None, []),
        ("suffix.jsonl", "", []),
        ("suffix.jsonl", '{"a": 1}\n', ["line 1", "`unmask bench`"]),
        ("lengths.jsonl", json.dumps(HEADLINE[1]) + "\n", ["line 1", "stages.py"]),
    ],
)
def test_a_page_of_something_else(name, content, named, docs, tmp_path, monkeypatch):
    if content is not None:
        (tmp_path / name).write_text(content)
    before = (docs / "slowfast.md").read_text()
    with refuses(SystemExit, name, *named):
        script("page.py", tmp_path / name, "--docs", docs, monkeypatch=monkeypatch)
    assert (docs / "slowfast.md").read_text() == before
    assert not (docs / "slowfast.json").exists()


# --- the length study


def test_phases_add_up_and_nothing_is_decoded_twice(tmp_path):
    path, lm = tmp_path / "lengths.jsonl", unmask.load()
    args = Namespace(canvas=96, n=1, task=["record"], policy=["slowfast"], split="valid", most=100, output=path)
    STAGES.measure(args, lm, BUNDLED_NAME)
    _, row = STAGES.read(path)
    item = source("record", 1, "valid").items[0]
    prompt = lm.requests([item.prompt], 1)[0].prompt
    (result,) = lm.generate(item.prompt, 96 - len(prompt), "slowfast")
    assert row["slow"]["forwards"] >= 2, "a window of two"
    assert row["slow"]["forwards"] + row["fast"]["forwards"] == result.stats.nfe
    assert row["slow"]["positions"] + row["fast"]["positions"] == pytest.approx(result.stats.positions)
    assert row["slow"]["positions"] == 96 * row["slow"]["forwards"]
    assert row["slow"]["committed"] == row["slow"]["forwards"], "one each"
    assert (row["finished"], row["correct"], row["tokens"]) == (1, int(item.check(result.text)), result.stats.tokens)
    STAGES.measure(args, lm, BUNDLED_NAME)
    assert len(STAGES.read(path)) == 2
    args.most = 1
    STAGES.measure(args, lm, BUNDLED_NAME)
    _, _, given_up = STAGES.read(path)
    assert (given_up["finished"], given_up["correct"], given_up["slow"]["forwards"]) == (0, 0, 1)


def test_a_copy_with_more_context_is_the_same_model(tmp_path):
    lm, name = STAGES.load(4096, tmp_path / "more")
    assert (lm.denoiser.spec.context, name) == (4096, f"{BUNDLED_NAME}, context 4096 for 2048")
    own, bundled = (m.generate("Say: a", 8, "vanilla")[0].tokens for m in (lm, STAGES.load(128, tmp_path)[0]))
    assert own == bundled


def test_a_canvas_without_room_is_refused(tmp_path, monkeypatch):
    args = ["--canvas", 4, "-n", 1, "--task", "record", "--output", tmp_path / "l.jsonl"]
    with refuses(SystemExit, "prompt 0", "gen_length"):
        script("stages.py", *args, monkeypatch=monkeypatch)
    assert list(tmp_path.iterdir()) == []


# --- the shell scripts


def test_what_the_scripts_measure_can_be_measured(tmp_path):
    """A stand-in for ``unmask`` notes what it is called with; all of it is known, and lands where page.py looks."""
    told = tmp_path / "told"
    stand_in = tmp_path / "bin" / "unmask"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {told}; printf "\\n" >> {told}\n')
    stand_in.chmod(0o755)
    bash = shutil.which("bash") or pytest.skip("no bash")
    for name in ("short.sh", "long.sh"):
        subprocess.run([bash, RECIPE / name, tmp_path], env={"PATH": f"{stand_in.parent}:/usr/bin:/bin"}, check=True)
    calls = [call.strip("\0").split("\0") for call in told.read_text().splitlines()]
    for call in calls:
        assert Path(call[call.index("--output") + 1]).stem in PAGE["PARTS"]
        for option, value in pairwise(call):
            if option in ("--policy", "--pair"):
                policy, _, cache = value.removesuffix("|full").partition("|")
                unmask.registry.policy(policy), unmask.registry.cache(cache or "none")
    stems = {Path(call[call.index("--output") + 1]).stem for call in calls}
    assert stems | {"lengths"} == set(PAGE["PARTS"])
    refused = subprocess.run([bash, RECIPE / "long.sh", tmp_path, "512"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (2, "unknown part 512; accepted: blocks, suffix, 256, 1024\n")
