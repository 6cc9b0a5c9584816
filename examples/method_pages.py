"""Write what of docs/methods comes from elsewhere: parameter tables, pictures, positions computed, figures, the index.

python examples/method_pages.py [--docs docs] [--only NAME ...]

A page keeps its own words; what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is written anew.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import unmask
from unmask import registry
from unmask.measure.stats import wilson
from unmask.viz import svg

PROMPT = (
    "Kai starts with 5 pins. Then 7 pins are added. Kai gives half of them to Ella. Kai gets 8 from Ella. "
    "How many pins are left?"
)
ANSWER, LENGTH = "Answer: 14", 48
BLOCKS, FORWARD = "vanilla(block_length=16)", "left_to_right(lookahead=24)"
RUNS = {  # of each cache the pairs in its table; the picture is of the first
    "none": [(BLOCKS, "none"), (FORWARD, "none"), ("slowfast", "none")],
    "prefix": [(BLOCKS, "prefix"), ("threshold(block_length=16)", "prefix")],
    "dual": [(BLOCKS, "dual"), ("threshold(block_length=16)", "dual")],
    "dllm": [(BLOCKS, "dllm(kp=12,kr=4)"), (BLOCKS, "dllm"), (BLOCKS, "dllm(kp=2,kr=1)")],
    "trailing": [(FORWARD, "trailing"), (FORWARD, "trailing(window=4)"), (BLOCKS, "trailing")],
    "window_cache": [
        ("window(threshold(block_length=8))", "window_cache"),
        ("window(threshold(block_length=8))", "window_cache(before=none,behind=0)"),
        ("window(threshold(block_length=8))", "dual"),
        ("threshold(block_length=16)", "window_cache"),
    ],
    "entropy_cache": [
        (BLOCKS, "entropy_cache"),
        (BLOCKS, "entropy_cache(masks=window,k=8)"),
        ("threshold(block_length=16)", "entropy_cache"),
        ("threshold(block_length=16)", "entropy_cache(tau=0.05)"),
    ],
    "elastic": [
        (BLOCKS, "elastic"),
        (BLOCKS, "elastic(gamma=0.98)"),
        ("window(threshold(block_length=16))", "elastic"),
        ("window(threshold(block_length=16))", "dual"),
    ],
    "d2": [(BLOCKS, "d2(k=8)"), (BLOCKS, "d2"), ("vanilla(block_length=none)", "d2(k=8)")],
    "blockwise": [("vanilla", "blockwise"), ("threshold", "blockwise")],
    "every": [(BLOCKS, "every(dual,4)"), (BLOCKS, "every(dual,1)"), (BLOCKS, "every(dllm(kp=48,kr=48,rho=0),4)")],
}
BLOCK_MODEL = dict.fromkeys(("ahead", "assd", "blockwise"), "unmask-tiny-block")  # not for models without blocks
COLOURS = {
    "#fce85a": "committed",
    "#36a": "computed",
    "#2d333b": "not computed",
    "#465a80": "computed in part of the layers",
}
NOISY = Path(__file__).parents[1] / "tests" / "golden" / "blocks" / "checkpoints" / "diffusion-gemma-rand"
NOISY_PROMPT, NOISY_POLICY = [5, 6, 7, 8, 30, 31, 90, 44], "renoise(entropy_bound=3,steps=8,confidence=0.6)"
DENOISED = {
    "#fce85a": "committed",
    "#36a": "the same token, or encoded",
    "#2d333b": "not computed",
    "#a3452c": "another token",
}
MULTI = 256  # gen_length of the one family whose answers are long
SHOWN = ("vanilla", "threshold", "slowfast", "left_to_right(lookahead=24)", "apd")  # policies on a cache's page
_INDEX = re.compile(r"# (?P<name>\w+)\n\n(?P<line>.+)\n\nPaper: (?P<paper>.+)\n")


def methods() -> dict[str, dict[str, Any]]:
    """What ``unmask policies --json`` and ``unmask caches --json`` tell of the package's own, by name."""
    found: dict[str, dict[str, Any]] = {}
    for command, own in (("policies", registry.POLICIES), ("caches", registry.CACHES)):
        code = "from unmask.cli import main; main()"
        said = subprocess.run([sys.executable, "-c", code, command, "--json"], capture_output=True, check=True).stdout
        found |= {name: about for name, about in json.loads(said).items() if name in own}
    return found


def parameters(about: dict[str, Any], which: str = "parameters") -> str:
    """The table of a method's parameters, or of its ``hidden`` ones."""
    if not about[which]:
        return "None."
    lines = ["| parameter | default | accepted | |", "|---|---|---|---|"]
    for p in about[which]:
        words = "; ".join(f"{_written(value)} ({preset})" for preset, value in p.get("presets", {}).items())
        default = "required" if p["required"] else words or _written(p["default"])
        doc = p["doc"].replace("|", "\\|")
        lines.append(f"| `{p['name']}` | {default} | {p['accepted']} | {doc} |")
    return "\n".join(lines)


def _written(value: Any) -> str:
    """A value as specs write it."""
    return f"`{str(value).lower() if value is None or isinstance(value, bool) else value}`"


def picture(lm: unmask.Model, name: str, file: Path) -> str:
    """Draw what a policy does with the problem; the lines that show it."""
    (result,) = lm.generate(PROMPT, LENGTH, name)
    file.write_text(svg(lm, [(name, result)]), encoding="utf-8")
    right = "right" if result.text.endswith(ANSWER) else "wrong"
    cost = f"{result.stats.tokens} tokens in {_count(result.stats.nfe)}"
    return (
        f"![{name}: {cost}](../img/methods/{file.name})\n\n"
        f"`{name}` with its defaults, `--gen-length {LENGTH}`: {cost}; the answer is {right}."
    )


def _count(forwards: int) -> str:
    return f"{forwards} forward pass{'es' * (forwards != 1)}"


Plans = list[tuple[list[bool], list[bool]]]  # of each forward pass the positions computed, in part and in all layers


def watched(spec: str) -> tuple[Any, Plans]:
    """A cache, and what its forward passes of one sequence compute."""
    cache, plans = registry.cache(spec), Plans()
    planned = cache.plan

    def plan(*args: Any) -> Any:
        made, state = planned(*args)
        fresh = made.compute if made.fresh is None else made.fresh
        plans.append((made.compute[0].tolist(), fresh[0].tolist()))
        return made, state

    object.__setattr__(cache, "plan", plan)
    return cache, plans


def positions(lm: unmask.Model, name: str, file: Path) -> str:
    """Draw what a cache computes; the picture and the table of what that costs, as lines of a page."""
    lines = [
        "| policy | cache | NFE | positions per pass | of `none` | answer |",
        "|---|---|---|---|---|---|",
    ]
    for policy, spec in RUNS[name]:
        cache, plans = watched(spec)
        (plain,), (result,) = (lm.generate(PROMPT, LENGTH, policy, c) for c in ("none", cache))
        each, base = (r.stats.positions / r.stats.nfe for r in (result, plain))
        answer = "right" if result.text.endswith(ANSWER) else "wrong"
        answer += ", the same text" if result.tokens == plain.tokens else ", another text"
        cells = f"`{policy}` | `{spec}` | {result.stats.nfe} | {each:.1f} | {each / base:.0%} | {answer}"
        lines.append(f"| {cells} |")
        if (policy, spec) == RUNS[name][0]:
            file.write_text(strip(f"{policy} + {spec}", plans, result), encoding="utf-8")
    shown = " + ".join(RUNS[name][0])
    return f"![{shown}: what each forward pass computes](../img/methods/{file.name})\n\n" + "\n".join(lines)


def strip(title: str, plans: Plans, result: unmask.Result) -> str:
    """A line of cells for each forward pass: what is computed, reused, committed."""
    prompt = len(result.prompt_tokens)
    done = {(step, prompt + at) for at, step in enumerate(result.steps) if step >= 0}
    committed, computed, kept, partly = COLOURS
    lines = []
    for n, (compute, fresh) in enumerate(plans):
        kinds = [computed if new else partly if part else kept for part, new in zip(compute, fresh, strict=True)]
        lines.append([committed if (n, at) in done else kind for at, kind in enumerate(kinds)])
    return grid(title, lines, prompt, COLOURS)


def grid(title: str, lines: list[list[str]], prompt: int, colours: dict[str, str]) -> str:
    """Lines of cells, each of a colour, the first ``prompt`` of a line behind a thin line."""
    size, left, top, total = 9, 24, 58, len(lines[0])
    marks: dict[str, list[str]] = {colour: [] for colour in colours}
    for n, kinds in enumerate(lines):
        for kind, run in groupby(range(total), kinds.__getitem__):
            cells = list(run)
            marks[kind].append(f"M{left + cells[0] * size} {top + n * size}h{len(cells) * size - 1}")
    width, height = 2 * left + total * size, top + len(lines) * size + 18
    legend = "".join(
        f'<path d="M{left + 190 * i} 42h8" stroke="{c}"/><text x="{left + 14 + 190 * i}" y="46">{word}</text>'
        for i, (c, word) in enumerate(colours.items())
    )
    paths = "".join(f'<path d="{"".join(d)}" stroke="{c}"/>' for c, d in marks.items())
    edge = left + prompt * size - 0.5
    style = f"text{{font:11px ui-monospace,Menlo,Consolas,monospace;fill:#e6edf3}}path{{stroke-width:{size - 1};"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{title}</title><style>{style}stroke-dasharray:{size - 1} 1}}</style>'
        f'<rect width="100%" height="100%" rx="10" fill="#161b22"/>'
        f'<text x="{left}" y="26" font-weight="bold">{title}</text>{legend}{paths}'
        f'<line x1="{edge}" y1="{top - 6}" x2="{edge}" y2="{height - 16}" stroke="#9aa4b2"/></svg>\n'
    )


def canvases(_: unmask.Model, name: str, file: Path) -> str:
    """Draw how a policy denoises canvases, with the random network of the golden traces: none that was trained is small
    enough; the lines that show it.
    """
    lm = unmask.load(NOISY, device="cpu", dtype="float32")
    committed, computed, nothing, other = DENOISED
    lines, before = [], None
    for step in lm.stream([NOISY_PROMPT], 3 * 16, NOISY_POLICY, "blockwise", seed=5):
        canvas, draft, window = step.canvas, step.ask.draft[0].tolist(), step.ask.window[0].tolist()
        written, work = step.update.write[0].tolist(), step.computed()[0].tolist()
        kinds = [computed if part else nothing for part in work]
        for at in (at for at, inside in enumerate(window) if inside):
            same = before is not None and before[at] == draft[at]
            kinds[at] = committed if written[at] else computed if same else other
        lines.append(kinds)
        before = draft
    total = int(canvas.length[0])
    drawn = grid(NOISY_POLICY, [line[:total] for line in lines], len(NOISY_PROMPT), DENOISED)
    file.write_text(drawn, encoding="utf-8")
    return (
        f"![{NOISY_POLICY}: three canvases of 16 tokens](../img/methods/{file.name})\n\n"
        f"`{NOISY_POLICY}` with the random network of the golden traces, whose canvases have 16 tokens: a line is a "
        "forward pass, a cell a position, the prompt on the left of the thin line. What is encoded is computed in the "
        "first forward pass of the next canvas alone."
    )


def measured(name: str, results: Path) -> str:
    """What was measured of a method, as tables: tuned (docs/results/every.json) and at the published defaults
    (policies.json); of a cache, the latter for some policies only.
    """
    side = "policy" if name in registry.POLICIES else "cache"

    def own(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [r for r in rows if r[side].partition("(")[0] == name]

    tuned, known = (
        json.loads((results / f"{file}.json").read_text(encoding="utf-8")) for file in ("every", "policies")
    )
    whole = [r for r in known if r["task"] == "all" or r["gen_length"] == MULTI]
    parts = []
    if found := own(tuned):
        parts += [
            "Tuned for `unmask-tiny`, problems of all kinds ([all policies](../results/every.md)):",
            _table(found, tuned),
        ]
    if found := [r for r in own(whole) if side == "policy" or r["policy"] in SHOWN]:
        parts += ["At the published defaults ([more](../results/policies.md)):", _table(found, whole)]
    return "\n\n".join(parts) or (
        "Not in the [table of all policies](../results/every.md): it is for another kind of model, or no policy is at "
        "its best with it."
    )


def _table(own: list[dict[str, Any]], whole: list[dict[str, Any]]) -> str:
    """Some settings beside vanilla of the same length."""
    base = {r["gen_length"]: r for r in whole if (r["policy"], r["cache"]) == ("vanilla", "none")}
    head = "| policy | cache | gen_length | n | accuracy, % | vanilla's answers lost, gained | NFE | TPF | speed |"
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    for r in sorted(own, key=lambda r: (r["gen_length"], r["policy"], r["cache"] != "none", r["cache"])):
        low, high = (100 * edge for edge in wilson(r["right"], r["n"]))
        plain = base.get(r["gen_length"])
        accuracy = f"{100 * r['right'] / r['n']:.1f} ({low:.1f} - {high:.1f})"
        changed = f"{r['lost']}, {r['won']}" if r["shared"] else ""
        speed = f"{r['cpu_rate'] / plain['cpu_rate']:.1f}x" if plain else ""
        cost = f"{r['nfe']:.1f} | {r['tpf']:.2f} | {speed}"
        cells = f"`{r['policy']}` | `{r['cache']}` | {r['gen_length']} | {r['n']} | {accuracy} | {changed} | {cost}"
        lines.append(f"| {cells} |")
    return "\n".join(lines)


def between(page: str, name: str, text: str) -> str:
    """The page with what stands between its two marks replaced."""
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    new, count = marks.subn(lambda found: f"{found[1]}{text}\n{found[2]}", page)
    if count != 1:
        raise SystemExit(f"no <!-- {name} --> ... <!-- /{name} --> in the page that begins {page[:30]!r}")
    return new


def index(folder: Path, names: list[str]) -> str:
    """The table of some pages, by their first lines."""
    lines = ["| name | | paper |", "|---|---|---|"]
    for name in names:
        found = _INDEX.match((folder / f"{name}.md").read_text(encoding="utf-8"))
        if not found or found["name"] != name:
            raise SystemExit(f"{name}.md must begin with '# {name}', a line that says what it is, and 'Paper: ...'")
        lines.append(f"| [`{name}`]({name}.md) | {found['line']} | {found['paper']} |")
    return "\n".join(lines)


def main() -> None:
    """Write all pages, or some."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these methods")
    args = parser.parse_args()
    folder, pictures = args.docs / "methods", args.docs / "img" / "methods"
    pictures.mkdir(parents=True, exist_ok=True)
    load, about = lru_cache(partial(unmask.load, device="cpu", dtype="float32")), methods()
    for name in args.only or about:
        lm = load(BLOCK_MODEL.get(name))
        file = folder / f"{name}.md"
        page = between(file.read_text(encoding="utf-8"), "parameters", parameters(about[name]))
        if about[name]["hidden"]:
            page = between(page, "hidden", parameters(about[name], "hidden"))
        show, mark = (picture, "picture") if name in registry.POLICIES else (positions, "positions")
        if name in registry.POLICIES and registry.policy(name).renoises:
            show = canvases
        page = between(page, "measured", measured(name, args.docs / "results"))
        file.write_text(between(page, mark, show(lm, name, pictures / f"{name}.svg")), encoding="utf-8")
        print(name)
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    for mark, known in (("policies", registry.POLICIES), ("caches", registry.CACHES)):
        text = between(text, mark, index(folder, list(known)))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
