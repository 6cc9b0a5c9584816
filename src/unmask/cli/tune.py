"""``unmask tune``."""

from __future__ import annotations

import json as _json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import RequestError
from . import options as o
from .outputs import check_distinct, check_writable
from .progress import Meter

if TYPE_CHECKING:
    from ..measure.candidates import Goal
    from ..measure.tune import Outcome

_Candidate = Annotated[
    list[str] | None,
    typer.Option(metavar="POLICY|CACHE", help="Search among these instead; can be repeated."),
]


@dataclass(frozen=True)
class Wanted:
    """What is wanted; see :func:`.options.takes`."""

    agreement: Annotated[bool, typer.Option("--agreement", help="Loss is a text that differs; no answers.")] = False
    epsilon: Annotated[float, typer.Option(help="Points below vanilla that are not to be reached.")] = 1.0
    delta: Annotated[float, typer.Option(help="Tolerated chance that the result loses more.")] = 0.1
    n_search: Annotated[int, typer.Option(min=1, help="Problems to search with.")] = 60
    n_calibration: Annotated[int, typer.Option(min=1, help="Problems to certify with, at most.")] = 600
    gen_length: Annotated[int, typer.Option("--gen-length", "-n", min=1, help="Tokens of a response.")] = 128
    batch_size: Annotated[int, typer.Option(min=1, help="Problems decoded together.")] = 16
    objective: Annotated[str, typer.Option(help="What speed is: tokens_per_second, nfe or positions.")] = (
        "tokens_per_second"
    )
    correction: Annotated[str, typer.Option(help="For many tests: fixed-sequence, or holm.")] = "fixed-sequence"
    seed: Annotated[int, typer.Option(min=0, max=o.SEEDS - 1, help="Of the problems and their split.")] = 0

    def goal(self) -> Goal:
        """As tuning takes it, checked."""
        from ..measure.candidates import Goal

        own = {**vars(self), "epsilon": self.epsilon / 100}
        goal = Goal(target="agreement" if own.pop("agreement") else "accuracy", **own)
        goal.check()
        return goal


@o.takes(without=("compile",))
def tune(
    *,
    task: Annotated[str, typer.Option(help=f"{o.TASKS}.")],
    wanted: Wanted,
    candidate: _Candidate = None,
    output: Annotated[str, typer.Option("--output", "-o", help="JSON file for the profile.")] = "profile.json",
    ledger: Annotated[str | None, typer.Option(help="Results, to resume from; default: OUTPUT.ledger.jsonl.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the profile and all candidates as JSON.")] = False,
    where: o.Loading,
) -> None:
    """Find the fastest policy and cache that certainly lose less than EPSILON points against vanilla."""
    from .. import profiles
    from ..measure.candidates import grid
    from ..measure.tune import describe
    from ..measure.tune import tune as run

    goal = wanted.goal()
    path = Path(ledger or f"{output}.ledger.jsonl")
    _check_files(output, path, task)
    pairs = [_pair(text) for text in candidate] if candidate else grid(goal.gen_length)
    lm = where.load()
    try:
        with Meter("elapsed") as meter:
            outcome = run(
                lm, where.model, task, pairs, goal, path,
                lambda stage, done, of: meter.update(description=stage, completed=done, total=of),
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"interrupted: the same command goes on from {path}", file=sys.stderr)
        raise typer.Exit(130) from None
    made = describe(lm, where.model, task, goal, outcome)
    profiles.write(output, made)
    if json:
        print(_json.dumps({**made, "candidates": _candidates(outcome)}, ensure_ascii=False, indent=2))
        return
    _table(outcome, goal)
    print(f"\n{made['policy']} with cache {made['cache']}: {made['speed']['against_vanilla']:.2f}x vanilla", end="")
    print(f" ({goal.objective}), in {output}\n{made['guarantee']}")


def _check_files(output: str, ledger: Path, task: str) -> None:
    """Two files, neither the one of problems, and both can be written."""
    check_distinct({"--task": task if task.endswith(".jsonl") else None, "--ledger": ledger, "--output": output})
    check_writable(output, regular=True)
    check_writable(str(ledger), make=True, regular=True)


def _pair(text: str) -> tuple[str, str]:
    policy, cache, eos_stop = o.pair("--candidate", text)
    if not eos_stop:
        raise RequestError(f"--candidate: tuning is for responses that end early; leave out |full in {text!r}")
    return policy, cache


def _candidates(outcome: Outcome) -> list[dict[str, Any]]:
    """Every candidate: those tested in the order of their tests, then the others."""
    tests = {t.found.setting: t for t in outcome.tested}
    order = [*(t.found for t in outcome.tested), *(f for f in outcome.found if f.setting not in tests)]
    rows = []
    for found in order:
        row = {
            "policy": found.setting.policy,
            "cache": found.setting.cache,
            "speed": round(found.speed, 3),
            "search": {"n": found.n, "lost": found.lost, "gained": found.gained, "differ": found.differ},
            "calibration": None,
        }
        if test := tests.get(found.setting):
            row["calibration"] = {
                key: getattr(test, key) for key in ("n", "lost", "gained", "e_value", "p_value", "passed")
            }
        rows.append(row)
    return rows


def _table(outcome: Outcome, goal: Goal) -> None:
    """What was tested, in its order, and how many were not."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("tested", overflow="fold")
    gained = ["gained"] if goal.target == "accuracy" else []
    for title in ("speed", "n", "lost", *gained, "loss, points", "e-value", "p-value", f"below {100 * goal.epsilon:g}"):
        table.add_column(title, justify="right", no_wrap=True)
    for t in outcome.tested:
        counts = [str(t.lost), *([str(t.gained)] if gained else [])]
        figures = [f"{100 * (t.lost - t.gained) / t.n:.2f}", f"{t.e_value:.2f}", f"{t.p_value:.4f}"]
        what = f"{t.found.setting.policy} | {t.found.setting.cache}"
        table.add_row(what, f"{t.found.speed:.2f}x", str(t.n), *counts, *figures, "yes" if t.passed else "not shown")
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    if outcome.tested:
        console.print(table)
    rest = len(outcome.found) - len(outcome.tested)
    console.print(
        f"{rest} of {len(outcome.found)} candidates were not tested: dominated, too slow, or behind a failure"
    )
    if gained:
        console.print(f"vanilla has {outcome.right} of the {goal.n_search} problems to search with right")
