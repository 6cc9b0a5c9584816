"""Accuracy of quantised weights: the same problems decoded by one model in several kinds of weights, compared in pairs.

    python recipes/quantize/accuracy.py --output runs/quantize.jsonl            # goes on where it was stopped
    python recipes/quantize/accuracy.py --output runs/quantize.jsonl --table    # what it has found so far

Problems come in portions of 20, and each portion is decoded by all kinds before the next is begun.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch

import unmask
from unmask.measure.problems import source
from unmask.measure.stats import mcnemar, paired_interval, wilson
from unmask.tasks import FAMILIES

KINDS = ("none", "int8", "int4")
SETTINGS = {"vanilla": ("vanilla", "none"), "recommended": (None, None)}
PORTION = 20
LENGTH = {"multi": 256}  # tokens of a response; its answers are longer than those of the other families


def decode(lm, setting, family, begin, end):
    """Whether each answer is right, and the forward passes, of some problems."""
    items = source(family, end).items[begin:end]
    policy, cache = SETTINGS[setting]
    results = lm.generate([i.prompt for i in items], LENGTH.get(family, 128), policy, cache, batch_size=PORTION, seed=0)
    return [bool(i.check(r.text)) for i, r in zip(items, results, strict=True)], [r.stats.nfe for r in results]


def run(options):
    torch.set_num_threads(1)
    held = done(options.output)
    models = {kind: unmask.load(options.model, "cpu", "bfloat16", quantize=kind) for kind in KINDS}
    with options.output.open("a", encoding="utf-8") as file:
        for begin in range(0, options.n, PORTION):
            for setting, family, kind in itertools.product(options.settings, options.families, KINDS):
                if (family, setting, kind, begin) in held:
                    continue
                end = min(begin + PORTION, options.n)
                right, nfe = decode(models[kind], setting, family, begin, end)
                line = {"family": family, "setting": setting, "kind": kind, "begin": begin, "right": right, "nfe": nfe}
                file.write(json.dumps(line) + "\n")
                file.flush()


def done(path):
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    return {(x["family"], x["setting"], x["kind"], x["begin"]): x for x in lines}


def table(options):
    """Markdown: accuracy of each kind, and the difference to bfloat16 on the problems that all kinds have decoded."""
    held = done(options.output)
    whole = {key[:2] + key[3:] for key in held if all((*key[:2], kind, key[3]) in held for kind in KINDS)}
    columns = ("setting", "weights", "problems", "right, % (95 % interval)", "difference, points (95 % CI)")
    print("|", " | ".join((*columns, "only one is right", "p", "NFE")), "|")
    print("|---|---|---|---|---|---|---|---|")
    for setting, kind in itertools.product(SETTINGS, KINDS):
        keys = sorted(key for key in whole if key[1] == setting)
        mine = [x for f, s, b in keys for x in held[f, s, kind, b]["right"]]
        base = [x for f, s, b in keys for x in held[f, s, "none", b]["right"]]
        nfe = [x for f, s, b in keys for x in held[f, s, kind, b]["nfe"]]
        n = len(mine)
        if not n:
            continue
        low, high = wilson(sum(mine), n)
        won = sum(m and not b for m, b in zip(mine, base, strict=True))
        lost = sum(b and not m for m, b in zip(mine, base, strict=True))
        least, most = paired_interval(won, lost, n)
        told = "" if kind == "none" else f"{100 * (won - lost) / n:+.2f} ({100 * least:+.2f} to {100 * most:+.2f})"
        pairs, p = ("", "") if kind == "none" else (f"{won} : {lost}", f"{mcnemar(won, lost):.2f}")
        name = "bfloat16" if kind == "none" else kind
        print(f"| {setting} | {name} | {n} | {100 * sum(mine) / n:.1f} ({100 * low:.1f} - {100 * high:.1f}) | {told} | "
              f"{pairs} | {p} | {sum(nfe) / n:.1f} |")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", help="folder; none: the bundled model")
    parser.add_argument("-n", type=int, default=300, help="problems of each family")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    table(chosen) if chosen.table else run(chosen)
