"""The table of docs/results/every.md: every policy at its best setting, on one engine, all stopping at the end of text.

    bash recipes/results/every.sh FOLDER        # runs all of it; goes on where it was stopped
    python recipes/results/every.py search      # the settings that are tried on the valid split, as options of `unmask bench`
    python recipes/results/every.py choose FILE # of these the best of each policy, likewise
    python recipes/results/every.py page VALID TEST

The best setting of a policy: the fastest of those that lose at most one answer of the valid split against vanilla; if all lose more,
the one with the most right. The test split is decoded once, with these settings alone.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from unmask.measure.figures import pareto
from unmask.measure.report import load, overall, parallelism
from unmask.measure.stats import wilson
from unmask.measure.summary import Figures, summarise, tallies

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from method_pages import between

PAGE = Path(__file__).parents[2] / "docs" / "results" / "every.md"
BASE = ("vanilla", "none")
LOST = 1  # answers of the valid split that a setting may lose
SURE = (0.99, 0.97, 0.9)
SLOWFAST = "slowfast(tau_high={tau},window=1,block_length=32)"
THRESHOLD = "threshold(tau={tau})"
CACHES = ("none", "dual", "dllm(kp=2,kr=1)", "entropy_cache", "elastic")
POLICIES: dict[str, list[str]] = {
    "vanilla": ["vanilla"],
    "dream": ["dream(alg=entropy,block_length=32)", "dream(steps=128,alg=entropy,block_length=32)"],
    "pc_sampler": ["pc_sampler", "pc_sampler(steps=128)"],
    "rnd1": ["rnd1", "rnd1(gamma=0.1)"],
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
    "suffix": [f"suffix(threshold(tau={tau}),32)" for tau in (0.99, 0.97)] + [f"suffix({SLOWFAST.format(tau=0.99)},32)"],
    "lookahead": [f"lookahead(threshold(tau={tau}),64)" for tau in (0.99, 0.97)]
    + [f"lookahead({SLOWFAST.format(tau=0.998)},64)"],
}  # what is for block models only (ahead) or for models without a mask token (renoise) is not among them
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
    parser.add_argument("what", choices=("search", "choose", "page"))
    parser.add_argument("files", nargs="*", type=Path, help="choose: of the valid split; page: of valid, of test")
    given = parser.parse_args()
    if given.what == "search":
        found = [(policy, cache) for name, own in POLICIES.items() for policy in own for cache in OWN.get(name, CACHES)]
    elif given.what == "choose":
        found = [(f.setting.policy, f.setting.cache) for f in best(figures(given.files))]
    else:
        write(figures(given.files[:1]), figures(given.files[1:]))
        return
    for policy, cache in found:
        print(f"--pair\n{policy}|{cache}")


def figures(files: list[Path]) -> list[Figures]:
    """What the files say of all families together, compared with vanilla."""
    return overall(summarise(tallies(load(files)), (*BASE, True)))


def best(found: list[Figures]) -> Iterator[Figures]:
    """One setting of each policy, see above; vanilla first, without a cache as well."""
    groups: dict[str, list[Figures]] = defaultdict(list)
    for f in found:
        groups[f.setting.policy.partition("(")[0]].append(f)
    yield next(f for f in found if (f.setting.policy, f.setting.cache) == BASE)
    for own in groups.values():
        safe = [f for f in own if f.lost - f.won <= LOST]
        one = max(safe, key=lambda f: f.cpu_rate) if safe else max(own, key=lambda f: (f.right, f.cpu_rate))
        if (one.setting.policy, one.setting.cache) != BASE:
            yield one


def write(valid: list[Figures], test: list[Figures]) -> None:
    """The table, the best settings first, and the picture."""
    area: dict[str, float] = {}
    for label, _, value in parallelism(valid):  # of the cache that does best
        name = label.split(",")[0].partition("(")[0].split()[0].strip("`")
        area[name] = max(value, area.get(name, 0.0))
    lines = ["| policy | cache | right, % (95 % interval) | NFE | TPF | tokens/s | times vanilla | AUP |", "|---" * 8 + "|"]
    for f in sorted(test, key=lambda f: -f.rate):
        low, high = wilson(f.right, f.n)
        right = f"{100 * f.accuracy:.1f} ({100 * low:.1f} - {100 * high:.1f})"
        under = area.get(f.setting.policy.partition("(")[0])
        cells = [f"`{f.setting.policy}`", f"`{f.setting.cache}`", right, f"{f.nfe:.1f}", f"{f.tpf:.2f}", f"{f.rate:.0f}"]
        cells += [f"{f.speedup:.1f}" if f.speedup else "1", "" if under is None else f"{under:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "table", "\n".join(lines)), encoding="utf-8")
    PAGE.with_name("every.png").write_bytes(pareto(test, "rate"))


if __name__ == "__main__":
    main()
