"""The tables and pictures of docs/results/slowfast.md, from what the scripts beside this one measure.

    python recipes/slowfast/page.py runs/slowfast/*.jsonl

A file's name says what part it is: thresholds, parts, blocks, headline-256, headline-1024, suffix or lengths (.jsonl);
or PART=FILE does, and several files of one part count together. Parts of which no file is given stay as
docs/results/slowfast.json has them; without any the page is made from that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unmask import RequestError, UnmaskError, registry
from unmask.measure import lines
from unmask.measure.stats import wilson
from unmask.measure.summary import ALL, VANILLA, Baseline, Figures, summarise, tallies

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "results"))
sys.path.insert(0, str(Path(__file__).parent))
import stages
from method_pages import between
from pictures import cost, speeds, thresholds
from policies import against, plain

DOCS = Path(__file__).parents[2] / "docs" / "results"
FIRST = ("slowfast", "slowfast(block_length=32)")  # what other settings are compared with
BASES: dict[str, Baseline] = {  # what speed is told against in the headline
    "published": ("vanilla", "none", False),
    "early": VANILLA,
    "autoregressive": ("autoregressive(shipped)", "none", True),
}
SWEEP = "![Accuracy and tokens per forward over the thresholds](slowfast-{}.png)"
SPEED = "![Tokens per second of processor time over gen_length](slowfast-speed.png)"
SHARES = "![Share of the exploratory phase over the length of the canvas](slowfast-lengths.png)"
Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="[PART=]FILE", help="files of results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of slowfast.md and slowfast.json")
    args = parser.parse_args()
    kept, page = args.docs / "slowfast.json", args.docs / "slowfast.md"
    summary: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    try:
        files = grouped(args.runs)
        summary |= {name: part(name, paths) for name, paths in files.items()}
    except UnmaskError as error:
        sys.exit(f"error: {error}")
    text = page.read_text(encoding="utf-8")
    for mark, table in tables(summary):
        text = between(text, mark, table)
    for name, png in pictures(summary):
        (args.docs / name).write_bytes(png)
    kept.write_text(written(summary))
    page.write_text(text, encoding="utf-8")


def written(summary: dict[str, Any]) -> str:
    """As JSON, a row per line."""
    parts = []
    for name, one in sorted(summary.items()):
        rows = ",\n".join(f"  {json.dumps(row)}" for row in one["rows"])
        parts.append(f' {json.dumps(name)}: {{"on": {json.dumps(one["on"])}, "rows": [\n{rows}\n ]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


# --- from files to what is kept


def grouped(names: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each part.

    Raises:
        RequestError: no such part, or no such file.
    """
    found: dict[str, list[Path]] = {}
    for text in names:
        name, given, rest = text.partition("=")
        path = Path(rest if given else text)
        name = name if given else path.name.removesuffix(".jsonl").removeprefix("slowfast-")
        if name not in PARTS:
            raise RequestError(
                f"{text}: expected PART=FILE, PART.jsonl or slowfast-PART.jsonl, where PART is {', '.join(PARTS)}"
            )
        if not path.is_file():
            raise RequestError(f"no file {path}")
        found.setdefault(name, []).append(path)
    return found


def part(name: str, paths: Sequence[Path]) -> dict[str, Any]:
    """On what a part was measured, and its rows.

    Raises:
        RequestError: a file holds something else, or nothing.
    """
    read = stages.read if name == "lengths" else lines.read
    rows = [row for path in paths for row in read(path)]
    if all(row["kind"] == "run" for row in rows):
        raise RequestError(f"{paths[0]} holds no results")
    runs = [row for row in rows if row["kind"] == "run"]
    on = list(dict.fromkeys(", ".join(f"{key} {run[key]}" for key in stages.MADE_WITH) for run in runs))
    return {"on": on, "rows": PARTS[name](rows)}


def whole(rows: Sequence[Row]) -> list[Row]:
    """Of each setting what it does on all its tasks together, against slowfast with its defaults, which comes first."""
    settings = tallies(rows)
    known = {one.setting.policy for one in settings}
    base = next((policy for policy in FIRST if policy in known), "")
    last = {f.setting: kept(f) for f in summarise(settings, (base, "none", True))}  # all, where it has several tasks
    found = [r | {"first": r["policy"] == base} for r in last.values()]
    return sorted(found, key=lambda r: (not r["first"], r["policy"]))


def headline(rows: Sequence[Row]) -> list[Row]:
    """Each setting on each family and on all, with its speed against three others."""
    figures = summarise(tallies(rows), VANILLA)
    faster = {name: dict(_speed(rows, base)) for name, base in BASES.items()}
    found = []
    for f in figures:
        told = {name: one.get((f.setting, f.task)) for name, one in faster.items()}
        found.append(kept(f) | {"faster": {k: round(v, 2) for k, v in told.items() if v is not None}})
    return found


def _speed(rows: Sequence[Row], base: Baseline) -> Iterator[tuple[Any, float]]:
    """Tokens per second of processor time over those of a baseline, on the problems that both have decoded."""
    batches = [row for row in rows if row["kind"] == "batch"]
    own = {_problem(r) for r in batches if (r["key"]["policy"], r["key"]["cache"], r["key"]["eos_stop"]) == base}
    shared = [row for row in rows if row["kind"] == "run" or _problem(row) in own]
    found = summarise(tallies(shared), base)
    of = {f.task: f.cpu_rate for f in found if (f.setting.policy, f.setting.cache, f.setting.eos_stop) == base}
    return (((f.setting, f.task), f.cpu_rate / of[f.task]) for f in found if of.get(f.task))


def _problem(row: Row) -> tuple[Any, ...]:
    key = row["key"]
    return key["task"], key["split"], key["seed"], key["first"], key["n"]


def kept(f: Figures) -> Row:
    """What is kept of a figure."""
    return plain(f) | {"full": not f.setting.eos_stop, "rate": round(f.rate, 3)}


def lengths(rows: Sequence[Row]) -> list[Row]:
    """Sums over the problems of each policy on each canvas, of both phases; ``clock``: what their ``time`` is of."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row["kind"] == "stage":
            groups.setdefault((row["key"]["canvas"], row["key"]["policy"]), []).append(row)
    told = all("cpu_seconds" in row["slow"] for own in groups.values() for row in own)
    clock, seconds = ("processor", "cpu_seconds") if told else ("wall", "seconds")
    found = []
    for (canvas, policy), own in sorted(groups.items(), key=lambda item: (item[0][0], order(item[0][1]))):
        sums = {name: sum(r[name] for r in own) for name in ("correct", "finished", "tokens")}
        for phase in stages.PHASES:
            keys = {"forwards": "forwards", "positions": "positions", "time": seconds}
            sums[phase] = {name: round(sum(r[phase][key] for r in own), 2) for name, key in keys.items()}
        found.append({"canvas": canvas, "policy": policy, "n": len(own), "clock": clock, **sums})
    return found


PARTS: dict[str, Callable[[Sequence[Row]], list[Row]]] = {
    "thresholds": whole,
    "parts": whole,
    "headline-256": headline,
    "headline-1024": headline,
    "blocks": whole,
    "suffix": whole,
    "lengths": lengths,
}


def order(policy: str) -> int:
    """Of the policies of the length study."""
    known = [str(registry.policy(p)) for p in stages.POLICIES]
    return known.index(policy) if policy in known else len(known)


# --- from what is kept to tables


def tables(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The marks of the page that there is anything for, and what stands there."""
    for name, one in summary.items():
        rows, foot = one["rows"], "\n\n" + "\n".join(f"On: {on}." for on in one["on"])
        if name.startswith("headline-"):
            mark, shown = name.removeprefix("headline-"), [r for r in rows if r["task"] == ALL]
            over = f"{SPEED}\n\n" if mark == "1024" and len(headlines(summary)) > 1 else ""
            yield f"table {mark}", over + markdown(by_speed(shown), HEADLINE) + foot
            yield f"families {mark}", families(rows) + foot
        elif name == "thresholds":
            yield "thresholds", f"{SWEEP.format(name)}\n\n{grid(rows)}{foot}"
        elif name == "parts":
            signals = [r for r in rows if "signal=" in r["policy"]]
            yield "parts", markdown([r for r in rows if r not in signals], PART) + foot
            yield "signals", markdown([r for r in rows if r["first"] or r in signals], PART) + foot
        elif name == "blocks":
            yield "blocks", f"{SWEEP.format(name)}\n\n{grid(list(filter(swept, rows)))}{foot}"
            yield "block parts", markdown([r for r in rows if r["first"] or not swept(r)], PART) + foot
        elif name == "suffix":
            yield name, markdown(rows, PART) + foot
        else:
            yield "lengths", f"{SHARES}\n\n{markdown(rows, LENGTH)}\n\nTimes are {rows[0]['clock']} time.{foot}"


def headlines(summary: dict[str, Any]) -> list[list[Row]]:
    """The rows of each gen_length that there is a headline of."""
    return [summary[name]["rows"] for name in sorted(summary) if name.startswith("headline-")]


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """One line per row."""
    head = [[name for name, _ in columns], ["---"] * len(columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*head, *([cell(r) for _, cell in columns] for r in rows)])


def by_speed(rows: Iterable[Row]) -> list[Row]:
    """Slowest first, as the paper's tables have it."""
    return sorted(rows, key=lambda r: r["cpu_rate"])


def label(row: Row) -> str:
    """Policy, cache, and whether it fills everything."""
    cache = "" if row["cache"] == "none" else f" + {row['cache']}"
    return f"`{row['policy']}{cache}`{', as published' if row['full'] else ''}"


def accuracy(row: Row) -> str:
    """Share of right answers with Wilson's interval, in percent."""
    low, high = wilson(row["right" if "right" in row else "correct"], row["n"])
    share = row["right" if "right" in row else "correct"] / row["n"]
    return f"{100 * share:.1f} ({100 * low:.1f} - {100 * high:.1f})"


def times(row: Row, base: str) -> str:
    """How much faster, in tokens per second of processor time."""
    value = row["faster"].get(base)
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


HEADLINE: list[Column] = [
    ("method", label),
    ("n", lambda r: str(r["n"])),
    ("tokens/s", lambda r: f"{r['rate']:.1f}"),
    ("tokens/CPU s", lambda r: f"{r['cpu_rate']:.1f}"),
    ("against vanilla as published", lambda r: times(r, "published")),
    ("against vanilla, early stop", lambda r: times(r, "early")),
    ("against autoregressive", lambda r: times(r, "autoregressive")),
    ("NFE", lambda r: f"{r['nfe']:.1f}"),
    ("TPF", lambda r: f"{r['tpf']:.2f}"),
    ("positions", lambda r: str(r["positions"])),
    ("score, %", accuracy),
    ("score against vanilla", lambda r: "" if r["policy"] == "vanilla" else against(r)),
]
PART: list[Column] = [
    ("setting", label),
    ("n", lambda r: str(r["n"])),
    ("accuracy, %", accuracy),
    ("against the first", lambda r: "" if r["first"] else against(r)),
    ("NFE", lambda r: f"{r['nfe']:.1f}"),
    ("TPF", lambda r: f"{r['tpf']:.2f}"),
    ("positions", lambda r: str(r["positions"])),
    ("tokens/CPU s", lambda r: f"{r['cpu_rate']:.1f}"),
]


def share(row: Row, key: str) -> str:
    """Of the exploratory phase, in percent."""
    return f"{100 * row['slow'][key] / (row['slow'][key] + row['fast'][key]):.0f} %"


def each(row: Row, phase: str) -> str:
    """Milliseconds of a forward."""
    count = row[phase]["forwards"]
    return f"{1e3 * row[phase]['time'] / count:.0f}" if count else ""


LENGTH: list[Column] = [
    ("canvas", lambda r: str(r["canvas"])),
    ("policy", lambda r: f"`{r['policy']}`"),
    ("n", lambda r: str(r["n"])),
    ("right, %", accuracy),
    ("given up", lambda r: str(r["n"] - r["finished"])),
    ("NFE", lambda r: f"{sum(r[p]['forwards'] for p in stages.PHASES) / r['n']:.1f}"),
    ("slow: forwards", lambda r: share(r, "forwards")),
    ("positions", lambda r: share(r, "positions")),
    ("time", lambda r: share(r, "time")),
    ("ms, slow", lambda r: each(r, "slow")),
    ("ms, fast", lambda r: each(r, "fast")),
]


def families(rows: Sequence[Row]) -> str:
    """The paper's tables 1 and 2: of each family and method tokens per second, speed and score."""
    found = ["| family | method | n | TPS (CPU) | speed (TPS) | score |", "|" + " --- |" * 6]
    for task in dict.fromkeys(r["task"] for r in rows if r["task"] != ALL):
        for i, row in enumerate(by_speed(r for r in rows if r["task"] == task)):
            score = f"{100 * row['right'] / row['n']:.2f}"
            shown = f"{row['n']} | {row['cpu_rate']:.2f} | {times(row, 'published')} | {score}"
            found.append(f"| {'' if i else task} | {label(row)} | {shown} |")
    return "\n".join(found)


def swept(row: Row) -> bool:
    """Is it of the sweep over thresholds: are these all that its policy is given?"""
    low, high = cell(row)
    return min(low, high) > 0 and row["policy"] in (
        str(registry.policy(f"slowfast(tau_min={low},tau_high={high}{more})")) for more in ("", ",block_length=32")
    )


def cell(row: Row) -> tuple[float, float]:
    """Where a setting stands in the sweep of thresholds."""
    policy = registry.policy(row["policy"])
    return policy.tau_min, policy.tau_high


def grid(rows: Sequence[Row]) -> str:
    """Accuracy and forwards over tau_min and tau_high."""
    cells = {cell(r): f"{100 * r['right'] / r['n']:.1f} @ {r['nfe']:.1f}" for r in rows}
    across = sorted({high for _, high in cells})
    found = [f"| tau_min | {' | '.join(f'tau_high {high:g}' for high in across)} |", "|" + " --- |" * (len(across) + 1)]
    for low in sorted({low for low, _ in cells}):
        found.append(f"| {low:g} | {' | '.join(cells.get((low, high), '') for high in across)} |")
    return "\n".join(found)


def pictures(summary: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Names and PNGs of what can be drawn."""
    for name in ("thresholds", "blocks"):
        if name in summary:
            yield f"slowfast-{name}.png", thresholds(list(filter(swept, summary[name]["rows"])))
    lengths = headlines(summary)
    if len(lengths) > 1:
        yield "slowfast-speed.png", speeds([r for rows in lengths for r in rows if r["task"] == ALL], label)
    if "lengths" in summary:
        yield "slowfast-lengths.png", cost(summary["lengths"]["rows"])


if __name__ == "__main__":
    main()
