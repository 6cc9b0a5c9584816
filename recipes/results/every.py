"""The table of docs/results/every.md: every policy at its best setting, on one engine, all stopping at the end of text.

    bash recipes/results/every.sh FOLDER          # runs all of it; goes on where it was stopped
    python recipes/results/every.py search        # every setting, as options of `unmask bench`
    python recipes/results/every.py search FIRST  # those worth trying on all families, by a run on word problems
    python recipes/results/every.py choose VALID  # of these the best of each policy, by a run on all families
    python recipes/results/every.py curves        # every setting without a cache, for AUP
    python recipes/results/every.py page CURVES TEST [MORE]  # MORE: some of the settings on more problems

Worth trying is, of each policy and cache, the fastest setting that loses no word problem against vanilla (if all lose
some, the one with the most right), unless the same policy without a cache is as fast and loses as little. The best
setting of a policy: the fastest of those that lose at most one answer of all families against vanilla; if all lose
more, the one with the most right. The test split is decoded once, with these settings alone. Speed is tokens per second
of processor time: one thread each, and other work may share the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask.measure.figures import pareto
from unmask.measure.report import load, overall, parallelism
from unmask.measure.summary import Figures, summarise, tallies

sys.path.insert(0, str(Path(__file__).parent))
from policies import BASE, DOCS, HEAD, between, families, line, plain

PAGE = DOCS / "every.md"
LOST = 1  # answers of the valid split that a setting may lose
SURE = (0.99, 0.97, 0.9)
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
    "factor": [f"factor(f={f})" for f in (0.03, 0.1, 0.3)],
    "entropy_bound": [f"entropy_bound(gamma={gamma})" for gamma in (0.01, 0.03, 0.1)],
    "klass": [f"klass(tau={tau})" for tau in SURE] + ["klass(tau=0.97,history=1)"],
    "wino": [f"wino(tau_in={tau},block_length=32)" for tau in (0.95, 0.9, 0.8)],
    "hierarchical": [f"hierarchical(tau={tau},low={low})" for tau, low in ((0.99, 0.95), (0.97, 0.9), (0.9, 0.8))],
    "credit": [f"credit(tau={tau})" for tau in (0.995, 0.99, 0.97)],
    "learn2pd": [f"learn2pd(tau={tau})" for tau in (0.998, 0.99, 0.96)],
    "learned": ["learned(sample=false)", "learned"],
    "prophet": ["prophet(threshold(tau=0.99))", "prophet(threshold(tau=0.99),high=15,mid=12,low=10)"],
    "refine": ["refine(iterations=8,block_length=32)", "refine(iterations=16,share=0.5,block_length=32)"],
    "cascade": [f"cascade(margin={margin})" for margin in (4, 2)],
    "apd": ["apd", "apd(r=0.5)"],
    "slowfast": [SLOWFAST.format(tau=tau) for tau in (0.998, *SURE)],
    "localleap": [f"localleap(tau={tau},low={low})" for tau, low in ((0.99, 0.95), (0.97, 0.9), (0.9, 0.75))],
    "dawn": [
        "dawn(tau=0.99,induce=0.95,low=0.95)",
        "dawn(tau=0.99,induce=0.9,low=0.9,sink=0.05)",
        "dawn(tau=0.97,induce=0.9,low=0.9)",
    ],
    "multiblock": [f"multiblock(tau={tau})" for tau in (0.02, 0.05, 0.2)],
    "lopa": [f"lopa({policy})" for policy in ("multiblock(tau=0.05)", "threshold(tau=0.99)", "threshold(tau=0.97)")],
    "sdar": [f"sdar(tau={tau},block_length=32)" for tau in SURE],
    "edit": [f"edit(threshold(tau={tau}))" for tau in (0.99, 0.95)],
    "verified": ["verified", "verified(drafts=8)"],
    "adaptive": [f"adaptive(threshold(tau=0.99),low={low})" for low in (0.97, 0.9)],
    "mask_ratio": [f"mask_ratio(threshold(tau=0.995),alpha={alpha})" for alpha in (0.01, 0.03)],
    "adablock": [f"adablock(threshold(tau={tau}))" for tau in (0.99, 0.97)],
    "window": [f"window(threshold(tau={tau}))" for tau in (0.99, 0.97)],
    "flexible": [f"flexible(threshold(tau={tau}),max_length=512)" for tau in (0.99, 0.97)],
    "daedal": [f"daedal(threshold(tau={tau}),max_length=512)" for tau in (0.99, 0.97)],
    "suffix": [f"suffix(threshold(tau={tau}),32)" for tau in (0.99, 0.97)]
    + [f"suffix({SLOWFAST.format(tau=0.99)},32)"],
    "lookahead": [f"lookahead(threshold(tau={tau}),64)" for tau in (0.99, 0.97)]
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
    parser.add_argument("what", choices=("search", "choose", "curves", "page"))
    parser.add_argument("files", nargs="*", type=Path, help="what `unmask bench` wrote, see above")
    given = parser.parse_args()
    if given.what == "search":
        all_ = [(policy, cache) for name, own in POLICIES.items() for policy in own for cache in OWN.get(name, CACHES)]
        found = [(f.setting.policy, f.setting.cache) for f in promising(figures(given.files))] if given.files else all_
    elif given.what == "curves":
        found = [(policy, "none") for own in POLICIES.values() for policy in own]
    elif given.what == "choose":
        found = [(f.setting.policy, f.setting.cache) for f in best(figures(given.files))]
    else:
        curves, test, *more = given.files
        write(figures([curves]), every([test]), figures(more) if more else [])
        return
    for policy, cache in found:
        print(f"--pair\n{policy}|{cache}")


def figures(files: list[Path]) -> list[Figures]:
    """What files say of all families together, compared with vanilla."""
    return overall(every(files))


def every(files: list[Path]) -> list[Figures]:
    """What files say of each family and of all."""
    return summarise(tallies(load(files)), (*BASE, True))


def fastest(found: list[Figures], lost: int) -> Figures:
    """Of those that lose at most so many answers more than they win; without any, of those with the most right."""
    safe = [f for f in found if f.lost - f.won <= lost]
    return max(safe, key=lambda f: f.cpu_rate) if safe else max(found, key=lambda f: (f.right, f.cpu_rate))


def name(f: Figures) -> str:
    """The policy's, without what is in parentheses."""
    return f.setting.policy.partition("(")[0]


def promising(found: list[Figures]) -> Iterator[Figures]:
    """What is worth trying on all families, see above."""
    groups: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for f in found:
        groups[name(f), f.setting.cache].append(f)
    own = {key: fastest(several, 0) for key, several in groups.items()}
    for f in own.values():
        bare = own[name(f), "none"]
        if f is bare or f.cpu_rate > bare.cpu_rate or f.right > bare.right:
            yield f


def best(found: list[Figures]) -> Iterator[Figures]:
    """One setting of each policy, see above; vanilla first, without a cache as well."""
    groups: dict[str, list[Figures]] = defaultdict(list)
    for f in found:
        groups[name(f)].append(f)
    yield next(f for f in found if (f.setting.policy, f.setting.cache) == BASE)
    for own in groups.values():
        one = fastest(own, LOST)
        if (one.setting.policy, one.setting.cache) != BASE:
            yield one


def write(curves: list[Figures], test: list[Figures], more: list[Figures]) -> None:
    """The table, the fastest settings first; the picture, whose numbers are the table's; docs/results/every.json."""
    area = {label.partition(", gen_length")[0]: value for label, _, value in parallelism(curves)}
    whole = sorted(overall(test), key=lambda f: -f.cpu_rate)
    rows = [plain(f) for f in whole]
    speed = next(r["cpu_rate"] for r in rows if (r["policy"], r["cache"]) == BASE)
    lines = [f"| {HEAD} AUP |", "|" + " --- |" * HEAD.count("|") + " --- |"]
    for number, (f, row) in enumerate(zip(whole, rows, strict=True), start=1):
        under = area.get(f.setting.family)
        lines.append(f"| {number} {line(row, speed)} {'' if under is None else round(under)} |")
    page = between(PAGE.read_text(encoding="utf-8"), "table", "\n".join(lines))
    page = between(page, "more", longer([plain(f) for f in more]))
    PAGE.write_text(between(page, "families", families([plain(f) for f in test])), encoding="utf-8")
    PAGE.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    PAGE.with_suffix(".png").write_bytes(pareto(whole, "cpu_rate"))


def longer(rows: list[dict[str, Any]]) -> str:
    """Accuracy alone, the best first; speed is not compared, since these were not all decoded side by side."""
    head, *_ = HEAD.partition(" | NFE")
    lines = [f"{head} |", "|" + " --- |" * head.count("|")]
    for row in sorted(rows, key=lambda r: -r["right"] / r["n"]):
        cells, *_ = line(row, None).partition(f" | {row['nfe']:.1f} | ")
        lines.append(f"{cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
