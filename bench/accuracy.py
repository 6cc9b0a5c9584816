"""Accuracy and cost of decoders on held-out problems, checked by a program.

    python bench/accuracy.py --n 300 --gen-length 256 --output runs/accuracy.jsonl

Each configuration runs each family; finished pairs are kept in the output and not repeated. The table gives accuracy
with its 95 % Wilson interval, forwards (NFE), tokens per forward and positions computed per problem.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from common import DLLM, SLOWFAST, Case, Config, append_line, cases, environment

import unmask
from unmask.measure.stats import wilson
from unmask.tasks import FAMILIES

DEFAULT = ["vanilla=vanilla|none", f"slowfast+dllm={SLOWFAST}|{DLLM}"]


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder or hub id (default: the shipped model)")
    parser.add_argument("--config", action="append", help="label=policy|cache, repeatable; the first is the baseline")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="repeatable (default: all)")
    parser.add_argument("--n", type=int, default=300, help="problems per family")
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--split", default="test", choices=("valid", "test"), help="tune on valid, report test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy.jsonl"))
    args = parser.parse_args()
    model = unmask.load(args.model, device=args.device, dtype=args.dtype)
    configs = [Config.parse(text) for text in args.config or DEFAULT]
    done = {(r["label"], r["family"]): r for r in read(args.output, args)}
    for family in args.family or list(FAMILIES):
        for config in configs:
            if (config.label, family) not in done:
                row = measure(model, config, cases([family], args.split, args.n, args.seed), args)
                append_line(args.output, row | environment(model))
                done[config.label, family] = row
                print(f"# {config.label} {family}: {sum(row['correct'])}/{row['n']}, NFE {row['nfe']:.1f}", flush=True)
    print(table(configs, args.family or list(FAMILIES), done))


def measure(model: unmask.Model, config: Config, items: list[Case], args: argparse.Namespace) -> dict[str, Any]:
    """Decode one family under one configuration."""
    began = time.perf_counter()
    results = model.generate([c.problem.prompt for c in items], args.gen_length, config.policy, config.cache,
                             batch_size=args.batch_size, eos_stop=config.eos_stop)  # fmt: skip
    seconds = time.perf_counter() - began
    count = len(items)
    return {
        "label": config.label, "policy": config.policy, "cache": config.cache, "eos_stop": config.eos_stop,
        "family": items[0].family, "split": args.split, "seed": args.seed, "n": count,
        "gen_length": args.gen_length, "batch_size": args.batch_size,
        "correct": [int(c.correct(r.text)) for c, r in zip(items, results, strict=True)],
        "nfe": sum(r.stats.nfe for r in results) / count,
        "tokens": sum(r.stats.tokens for r in results) / count,
        "tpf": sum(r.stats.tokens for r in results) / sum(r.stats.nfe for r in results),
        "positions": sum(r.stats.positions for r in results) / count,
        "seconds": seconds,
    }  # fmt: skip


def read(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Earlier rows with the same settings."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    same = {"split": args.split, "seed": args.seed, "n": args.n, "gen_length": args.gen_length}
    return [row for row in rows if all(row[k] == v for k, v in same.items())]


def table(configs: list[Config], families: list[str], rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Markdown, one line per configuration and family, and the families together."""
    lines = ["| decoder | family | n | correct | 95 % interval | against baseline | NFE | TPF | positions |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for config in configs:
        own = [rows[config.label, family] for family in families]
        base = [rows[configs[0].label, family] for family in families]
        for row, other in zip(own, base, strict=True):
            lines.append(_line(config.label, row["family"], [row], [other]))
        if len(families) > 1:
            lines.append(_line(config.label, "**all**", own, base))
    return "\n".join(lines)


def _line(label: str, name: str, rows: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    right, wrong = [c for r in rows for c in r["correct"]], [c for r in base for c in r["correct"]]
    n, good = len(right), sum(right)
    low, high = wilson(good, n)
    lost, won = (
        sum(b > a for a, b in zip(right, wrong, strict=True)),
        sum(a > b for a, b in zip(right, wrong, strict=True)),
    )
    nfe, tokens, positions = (sum(r[k] for r in rows) / len(rows) for k in ("nfe", "tokens", "positions"))
    return (f"| {label} | {name} | {n} | {100 * good / n:.1f} % | {100 * low:.1f} - {100 * high:.1f} | "
            f"+{won} -{lost} | {nfe:.1f} | {tokens / nfe:.2f} | {positions:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
