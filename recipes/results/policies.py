"""Every policy with three caches at its published defaults: the tables and the picture of docs/results/policies.md.

    bash recipes/results/policies.sh runs/policies            # hours; goes on where it was
    python recipes/results/policies.py runs/policies/*.jsonl

Writes docs/results/policies.json, from which examples/method_pages.py takes what stands on each method's page. What
that holds of a gen_length of which no file is given stays, and so does its table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.measure.figures import pareto
from unmask.measure.report import load, overall
from unmask.measure.stats import paired_interval, wilson
from unmask.measure.summary import ALL, Figures, Tally, summarise, tallies

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from method_pages import between

DOCS = Path(__file__).parents[2] / "docs" / "results"
BASE = ("vanilla", "none")
HEAD = "| policy | cache | n | accuracy, % | against vanilla | NFE | TPF | positions | tokens/CPU s | speed |"


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="files of `unmask bench`")
    measured: dict[int, list[Tally]] = {}  # lengths have tasks of their own
    for one in tallies(load(parser.parse_args().runs)):
        measured.setdefault(one.setting.gen_length, []).append(one)
    figures = [f for own in measured.values() for f in summarise(own)]
    before = [r for r in json.loads((DOCS / "policies.json").read_text()) if r["gen_length"] not in measured]
    rows = sorted([*before, *map(plain, figures)], key=lambda r: (r["gen_length"], r["task"] != ALL, r["task"]))
    (DOCS / "policies.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    page = (DOCS / "policies.md").read_text(encoding="utf-8")
    for length in sorted(measured):
        whole = [f for f in overall(figures) if f.setting.gen_length == length]
        own = [r for r in rows if r["gen_length"] == length]
        page = between(page, f"table {length}", table([plain(f) for f in whole]))
        if any(r["task"] == ALL for r in own):
            page = between(page, f"families {length}", families(own))
        (DOCS / f"policies-{length}.png").write_bytes(pareto(whole, "cpu_rate"))
    (DOCS / "policies.md").write_text(page, encoding="utf-8")


def plain(f: Figures) -> dict[str, Any]:
    """What is kept of a figure."""
    s = f.setting
    return {
        "policy": s.policy, "cache": s.cache, "gen_length": s.gen_length, "task": f.task, "n": f.n, "right": f.right,
        "won": f.won, "lost": f.lost, "shared": f.shared, "nfe": round(f.nfe, 2), "tpf": round(f.tpf, 2),
        "positions": round(f.positions), "cpu_rate": round(f.cpu_rate, 3),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per setting."""
    speed = next((r["cpu_rate"] for r in rows if (r["policy"], r["cache"]) == BASE), None)
    return "\n".join([HEAD, "|" + " --- |" * (HEAD.count("|") - 1), *(line(r, speed) for r in ranked(rows))])


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings of a policy together, the policies by their best accuracy."""
    best = {r["policy"]: max(x["right"] / x["n"] for x in rows if x["policy"] == r["policy"]) for r in rows}
    return sorted(rows, key=lambda r: (-best[r["policy"]], r["policy"], r["cache"] != "none", r["cache"]))


def line(r: dict[str, Any], speed: float | None) -> str:
    """A line of :func:`table`; ``speed`` is vanilla's."""
    low, high = wilson(r["right"], r["n"])
    accuracy = f"{100 * r['right'] / r['n']:.1f} ({100 * low:.1f} - {100 * high:.1f})"
    cost = f"{r['nfe']:.1f} | {r['tpf']:.2f} | {r['positions']} | {r['cpu_rate']:.0f}"
    times = f"{r['cpu_rate'] / speed:.1f}x" if speed else ""
    return f"| `{r['policy']}` | `{r['cache']}` | {r['n']} | {accuracy} | {against(r)} | {cost} | {times} |"


def against(r: dict[str, Any]) -> str:
    """Points more or fewer than vanilla on the same problems, with the 95 % interval."""
    if not r["shared"] or (r["policy"], r["cache"]) == BASE:
        return ""
    low, high = paired_interval(r["won"], r["lost"], r["shared"])
    return f"{100 * (r['won'] - r['lost']) / r['shared']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def families(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy and forwards of each family, one line per setting."""
    tasks = sorted({r["task"] for r in rows} - {ALL})
    lines = [f"| policy | cache | {' | '.join(tasks)} |", "|" + " --- |" * (len(tasks) + 2)]
    whole = [r for r in rows if r["task"] == ALL]
    for own in ((r["policy"], r["cache"]) for r in ranked(whole)):
        found = {r["task"]: r for r in rows if (r["policy"], r["cache"]) == own}
        cells = [f"{100 * r['right'] / r['n']:.1f} @ {r['nfe']:.1f}" for r in map(found.__getitem__, tasks)]
        lines.append(f"| `{own[0]}` | `{own[1]}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
