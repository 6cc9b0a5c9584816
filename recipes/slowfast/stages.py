"""What the exploratory phase of SlowFast costs as the canvas grows: its share of forwards, positions and time.

    python recipes/slowfast/stages.py --canvas 1024 -n 15 --output runs/slowfast/lengths.jsonl

Canvas: prompt and response together. Each problem is decoded by every policy in a random order, alone in its batch; a
line of results says what its forwards took by phase, and what the file holds is not decoded again. On canvases longer
than its context the model that ships runs beyond what it was trained for, from a copy of its folder that allows it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import unmask
from unmask import registry
from unmask.api import BUNDLED, BUNDLED_NAME
from unmask.measure import ledger, run
from unmask.measure.problems import Item, source
from unmask.tasks import FAMILIES

VERSION = 1
TASKS = ("word_problem", "waiting_line", "sudoku", "record")
TUNED = "slowfast(tau_high=0.998,window=1,block_length=32)"
LONG = ("slowfast", TUNED, f"lookahead({TUNED},64)")  # beyond 1024: there the suffixes decode alike, one is enough
POLICIES = ("slowfast(suffix=full)", LONG[0], "slowfast(suffix=truncate)", *LONG[1:])
PHASES = ("slow", "fast")
MADE_WITH = ("model", "device", "dtype", "threads", "torch")


def main() -> None:
    """Decode what is missing."""
    args = arguments()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, *load(args.canvas, Path(folder)))
    except unmask.UnmaskError as error:
        sys.exit(f"error: {error}")


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--canvas", type=int, required=True, help="tokens of prompt and response together")
    parser.add_argument("-n", type=int, default=15, help="problems of each family")
    parser.add_argument("--policy", action="append", help="repeatable; default: those of docs/results/slowfast.md")
    parser.add_argument("--task", action="append", choices=tuple(FAMILIES), help="repeatable; default: all but multi")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    parser.add_argument("--most", type=int, default=100, help="forwards after which a problem is given up")
    parser.add_argument("--output", type=Path, default=Path("runs/slowfast/lengths.jsonl"))
    args = parser.parse_args()
    for key in ("canvas", "n", "most"):
        if getattr(args, key) < 1:
            parser.error(f"{key} must be at least 1, got {getattr(args, key)}")
    return args


def load(canvas: int, folder: Path) -> tuple[unmask.Model, str]:
    """The model that ships and its name; for a canvas beyond its context a copy in ``folder`` that allows it."""
    lm = unmask.load()
    context = lm.denoiser.spec.context
    if canvas <= context:
        return lm, BUNDLED_NAME
    shutil.copytree(BUNDLED, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_sequence_length": canvas}))
    return unmask.load(str(folder)), f"{BUNDLED_NAME}, context {canvas} for {context}"


def measure(args: argparse.Namespace, lm: unmask.Model, name: str) -> None:
    """Decode every problem by every policy that the file has no line of.

    Raises:
        UnmaskError: the file holds something else, or a prompt leaves no room for a response.
    """
    head = run.header(lm, name)
    rows = read(args.output)
    have = {json.dumps(row["key"]) for row in rows if row["kind"] == "stage" and row["run"] == head["run"]}
    drawn = {task: source(task, args.n, args.split).items for task in args.task or TASKS}
    problems = [(task, index, drawn[task][index]) for index in range(args.n) for task in drawn]
    rng, warm = random.Random(0), set()
    policies = [str(registry.policy(p)) for p in args.policy or (POLICIES if args.canvas <= 1024 else LONG)]
    requests = [request(lm, item, args.canvas) for *_, item in problems]
    for own in requests:
        lm.engine().check(own[0])
    if not any(row["kind"] == "run" and row["run"] == head["run"] for row in rows):
        ledger.append(args.output, head)
    for (task, index, item), own in zip(problems, requests, strict=True):
        for policy in rng.sample(policies, len(policies)):
            key = {"policy": policy, "canvas": args.canvas, "task": task, "split": args.split, "first": index,
                   "most": args.most}  # fmt: skip
            if json.dumps(key) in have:
                continue
            if policy not in warm:
                decode(lm, own, item, policy, 2)  # the first forwards allocate
                warm.add(policy)
            line = {"kind": "stage", "version": VERSION, "run": head["run"], "key": key}
            ledger.append(args.output, line | decode(lm, own, item, policy, args.most))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def request(lm: unmask.Model, item: Item, canvas: int) -> list[Any]:
    """A request whose prompt and response fill the canvas."""
    (own,) = lm.requests([item.prompt], 1)
    return lm.requests([item.prompt], canvas - len(own.prompt), seed=0)


def decode(lm: unmask.Model, own: list[Any], item: Item, policy: str, most: int) -> dict[str, Any]:
    """Decode one problem.

    Returns:
        ``correct``, ``finished`` (in ``most`` forwards), ``tokens`` before the first end of text; of each phase
        ``forwards``, ``positions`` (computed, averaged over the layers), ``committed``, ``seconds`` and
        ``cpu_seconds`` (processor time, which other work on the machine disturbs less).
    """
    phases = {
        name: {"forwards": 0, "positions": 0.0, "committed": 0, "seconds": 0.0, "cpu_seconds": 0.0} for name in PHASES
    }
    result, began = None, time.process_time()
    chosen, none = lm.setting(policy, "none")
    for step in lm.run([replace(own[0], policy=chosen, cache=none)], 1):
        if not isinstance(step, unmask.Step):
            result = lm.result(step)
            break
        if step.index == most:
            break
        one = phases["slow" if bool(step.notes()["slow"]) else "fast"]
        one["forwards"] += 1
        one["positions"] += float(step.work)
        one["committed"] += int(step.update.write.sum())
        one["seconds"] += step.seconds
        one["cpu_seconds"] += time.process_time() - began
        began = time.process_time()
    return {
        "correct": int(result is not None and item.check(result.text)),
        "finished": int(result is not None),
        "tokens": 0 if result is None else result.stats.tokens,
        **{name: {k: round(v, 5) for k, v in one.items()} for name, one in phases.items()},
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none where there is no file.

    Raises:
        RequestError: it holds something else.
    """
    rows = [line.value for line in ledger.read(path)]
    for number, row in enumerate(rows, 1):
        needed = {"run": {"run", *MADE_WITH}, "stage": {"run", "key", "correct", "finished", *PHASES}}
        if row.get("version") != VERSION or not needed.get(row.get("kind", ""), {""}) <= set(row):
            raise unmask.RequestError(f"{path} line {number} is not a line of {Path(__file__).name}")
    return rows


if __name__ == "__main__":
    main()
