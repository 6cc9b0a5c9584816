"""The table of docs/results/every.md: every policy at its best setting, on one engine, all stopping at the end of text.

    bash recipes/results/every.sh FOLDER             # runs all of it; goes on where it was stopped
    python recipes/results/every.py search           # every setting, as options of `unmask bench`
    python recipes/results/every.py shortlist VALID  # those worth trying on all families, by a run on the two of FIRST
    python recipes/results/every.py choose VALID     # the best of each policy, by a run of those on all families
    python recipes/results/every.py page VALID SPEED TEST [TEST ...]

A setting is safe if on the valid split it loses at most three answers more than it gains, against vanilla: first of
120, then of 300. On all families is tried, of each policy with each cache, the safe setting that computes least; the
best of a policy is the one of these that is still safe and computes least. Where none is safe, it is the one with the
most right. The test split is decoded with the best settings alone, twice: for the answers in batches on any device
(TEST), and some problems one at a time on one thread of a CPU for the times (SPEED). Speed is tokens per second of
processor time, since other work may share the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unmask.measure.figures import pareto
from unmask.measure.report import load, overall, parallelism
from unmask.measure.summary import Figures, summarise, tallies

sys.path.insert(0, str(Path(__file__).parent))
from policies import BASE, DOCS, HEAD, between, families, line, plain

PAGE = DOCS / "every.md"
FIRST = ("multi", "word_problem")  # the two on which settings differ most
LOST = 3  # answers of the valid split that a setting may lose
PASS = 300  # positions that take a CPU as long as what a forward pass takes besides its positions
ELASTIC = 1.6  # times as long as that says, with the cache `elastic`, which looks at attention in every layer
SURE = (0.998, 0.99, 0.97, 0.9)
SLOWFAST = "slowfast(tau_high={tau},window=1,block_length=32)"
CACHES = ("none", "dual", "dllm(kp=2,kr=1)", "entropy_cache", "elastic")
POLICIES: dict[str, list[str]] = {
    "vanilla": ["vanilla"],
    "dream": ["dream(alg=entropy,block_length=32)", "dream(steps=128,alg=entropy,block_length=32)"],
    "pc_sampler": ["pc_sampler", "pc_sampler(steps=128)"],
    "rnd1": ["rnd1", "rnd1(steps=128)", "rnd1(steps=64)"],
    "left_to_right": ["left_to_right", "left_to_right(k=2)"],
    "saber": ["saber(block_length=32)", "saber(n=1,block_length=32)"],
    "threshold": [f"threshold(tau={tau})" for tau in SURE],
    "factor": [f"factor(f={f})" for f in (0.01, 0.03, 0.1, 0.3)],
    "entropy_bound": [f"entropy_bound(gamma={gamma})" for gamma in (0.001, 0.003, 0.01, 0.03, 0.1)],
    "klass": [f"klass(tau={tau})" for tau in SURE] + ["klass(tau=0.97,history=1)"],
    "wino": [f"wino(tau_in={tau},block_length=32)" for tau in (0.99, 0.95, 0.9, 0.8)],
    "hierarchical": [
        f"hierarchical(tau={tau},low={low})" for tau, low in ((0.998, 0.99), (0.99, 0.95), (0.97, 0.9), (0.9, 0.8))
    ],
    "credit": [f"credit(tau={tau})" for tau in (0.999, 0.995, 0.99, 0.97)],
    "learn2pd": [f"learn2pd(tau={tau})" for tau in (0.9995, 0.998, 0.99, 0.96)],
    "learned": ["learned(sample=false)", "learned"],
    "prophet": [
        "prophet(threshold(tau=0.99))",
        "prophet(threshold(tau=0.998),high=25,mid=20,low=16)",
        "prophet(threshold(tau=0.99),high=15,mid=12,low=10)",
    ],
    "refine": ["refine(iterations=8,block_length=32)", "refine(iterations=16,share=0.5,block_length=32)"],
    "cascade": [f"cascade(margin={margin})" for margin in (8, 4, 2)],
    "apd": ["apd", "apd(r=0.5)"],
    "slowfast": [SLOWFAST.format(tau=tau) for tau in SURE],
    "localleap": [
        f"localleap(tau={tau},low={low})" for tau, low in ((0.998, 0.99), (0.99, 0.95), (0.97, 0.9), (0.9, 0.75))
    ],
    "dawn": [
        "dawn(tau=0.998,induce=0.99,low=0.99)",
        "dawn(tau=0.99,induce=0.95,low=0.95)",
        "dawn(tau=0.99,induce=0.9,low=0.9,sink=0.05)",
        "dawn(tau=0.97,induce=0.9,low=0.9)",
    ],
    "multiblock": [f"multiblock(tau={tau})" for tau in (0.005, 0.02, 0.05, 0.2)],
    "lopa": [
        f"lopa({policy})"
        for policy in ("multiblock(tau=0.005)", "multiblock(tau=0.05)", "threshold(tau=0.998)", "threshold(tau=0.99)")
    ],
    "sdar": [f"sdar(tau={tau},block_length=32)" for tau in SURE],
    "edit": [f"edit(threshold(tau={tau}))" for tau in (0.998, 0.99, 0.95)],
    "verified": ["verified", "verified(drafts=8)"],
    "adaptive": ["adaptive(threshold(tau=0.998),low=0.99)"]
    + [f"adaptive(threshold(tau=0.99),low={low})" for low in (0.97, 0.9)],
    "mask_ratio": ["mask_ratio(threshold(tau=0.999),alpha=0.003)"]
    + [f"mask_ratio(threshold(tau=0.995),alpha={alpha})" for alpha in (0.01, 0.03)],
    "adablock": [f"adablock(threshold(tau={tau}))" for tau in (0.998, 0.99, 0.97)],
    "window": [f"window(threshold(tau={tau}))" for tau in (0.998, 0.99, 0.97)],
    "flexible": [f"flexible(threshold(tau={tau}),max_length=512)" for tau in (0.998, 0.99, 0.97)],
    "daedal": [f"daedal(threshold(tau={tau}),max_length=512)" for tau in (0.998, 0.99, 0.97)],
    "suffix": [f"suffix(threshold(tau={tau}),32)" for tau in (0.998, 0.99, 0.97)]
    + [f"suffix({SLOWFAST.format(tau=tau)},32)" for tau in (0.998, 0.99)],
    "lookahead": [f"lookahead(threshold(tau={tau}),64)" for tau in (0.998, 0.99, 0.97)]
    + [f"lookahead({SLOWFAST.format(tau=0.998)},64)"],
}  # not ahead, assd and renoise, which are for models of other kinds
OWN = {  # caches made for a policy
    "apd": ("none", "trailing"),
    "cascade": ("none", "trailing"),
    "left_to_right": ("none", "trailing"),
    "window": (*CACHES, "window_cache"),
    "wino": ("none", "dual", "dllm(kp=2,kr=1)"),
    "verified": ("none",),
    "lopa": ("none", "dual", "dllm(kp=2,kr=1)"),
    "flexible": ("none", "dllm(kp=2,kr=1)"),
    "daedal": ("none", "dllm(kp=2,kr=1)"),
    "dawn": ("none", "dual", "dllm(kp=2,kr=1)"),
    "refine": ("none", "dllm(kp=2,kr=1)"),
}


def main() -> None:
    """Print options, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = {"search": 0, "shortlist": 1, "choose": 1, "page": 3}
    parser.add_argument("what", choices=steps)
    parser.add_argument("files", nargs="*", type=Path, help="what `unmask bench` wrote, see above")
    given = parser.parse_args()
    if len(given.files) != steps[given.what] and not (given.what == "page" and len(given.files) > steps["page"]):
        parser.error(f"{given.what} takes {steps[given.what]} files, got {len(given.files)}")
    if given.what == "page":
        valid, speed, first, *more = given.files
        test = figures(first) + [f for file in more for f in figures(file) if key(f) != BASE]
        write(overall(figures(valid, FIRST)), test, {key(f): f.cpu_rate for f in overall(figures(speed))})
        return
    if given.what == "search":
        pairs = [(policy, cache) for name, own in POLICIES.items() for policy in own for cache in OWN.get(name, CACHES)]
    elif given.what == "shortlist":
        pairs = [key(f) for f in best(overall(figures(*given.files, FIRST)), apart=True)]
    else:
        pairs = [key(f) for f in best(overall(figures(*given.files)))]
    for policy, cache in pairs:
        print(f"--pair\n{policy}|{cache}")


def figures(file: Path, families: Sequence[str] = ()) -> list[Figures]:
    """What a run says of some families, or of all: of each, and of them together, compared with vanilla."""
    rows = [r for r in load([file]) if not families or r["kind"] == "run" or r["key"]["task"] in families]
    return summarise(tallies(rows), (*BASE, True))


def key(f: Figures) -> tuple[str, str]:
    """What a setting is called in every run."""
    return f.setting.policy, f.setting.cache


def cost(f: Figures) -> float:
    """What a problem takes, in positions."""
    return (f.nfe * PASS + f.positions) * (ELASTIC if f.setting.cache.startswith("elastic") else 1)


def best(found: list[Figures], apart: bool = False) -> list[Figures]:
    """Of each policy, or ``apart`` of each with each cache, the safe setting that computes least; where none is safe,
    the one with the most right. Vanilla is the baseline: without a cache. What was decoded on fewer problems than that
    is left out.
    """
    base = next(f for f in found if key(f) == BASE)
    groups: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for f in (f for f in found if f.n == base.n and f.setting.policy != base.setting.policy):
        groups[f.setting.policy.partition("(")[0], apart * f.setting.cache].append(f)
    kept = {key(base): base}
    for own in groups.values():
        safe = [f for f in own if f.lost - f.won <= LOST]
        one = min(safe, key=cost) if safe else max(own, key=lambda f: (f.right, -cost(f)))
        kept[key(one)] = one
    return list(kept.values())


def write(valid: list[Figures], test: list[Figures], speed: dict[tuple[str, str], float]) -> None:
    """The table, the fastest settings first; the picture, whose numbers are the table's; docs/results/every.json."""
    area = {label.partition(", gen_length")[0]: value for label, _, value in parallelism(valid)}
    whole = [replace(f, cpu_rate=speed[key(f)]) for f in overall(test)]
    whole.sort(key=lambda f: -f.cpu_rate)
    rows = [plain(f) for f in whole]
    lines = [f"| {HEAD} AUP |", "|" + " --- |" * HEAD.count("|") + " --- |"]
    for number, (f, row) in enumerate(zip(whole, rows, strict=True), start=1):
        under = area.get(f.setting.family)
        lines.append(f"| {number} {line(row, speed[BASE])} {'' if under is None else round(under)} |")
    page = between(PAGE.read_text(encoding="utf-8"), "table", "\n".join(lines))
    PAGE.write_text(between(page, "families", families([plain(f) for f in test])), encoding="utf-8")
    PAGE.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    PAGE.with_suffix(".png").write_bytes(pareto(whole, "cpu_rate"))


if __name__ == "__main__":
    main()
