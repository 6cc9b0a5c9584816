"""Speed of decoders on one machine, interleaved: headline ratios, time outside the model, batch scaling.

    python bench/speed.py headline --gen-length 256 --problems 2
    python bench/speed.py outside
    python bench/speed.py batch

Tokens are response tokens before the first end of text only. ``headline`` decodes every problem with every decoder in
turn and reports the median over problems of the ratio to each vanilla, and the ratio of total tokens per second.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median
from typing import Any

import torch
from common import DLLM, SLOWFAST, Case, Config, cases, environment

import unmask
from unmask.tasks import FAMILIES

HEADLINE = [
    Config("vanilla, as published", "vanilla", "none", eos_stop=False),
    Config("vanilla, early stop", "vanilla", "none"),
    Config("threshold + dual", "threshold", "dual"),
    Config("slowfast", SLOWFAST, "none"),
    Config("slowfast + dllm", SLOWFAST, DLLM),
]


def main() -> None:
    """Choose the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("headline", "outside", "batch"))
    parser.add_argument("--model", default=None)
    parser.add_argument("--config", action="append", help="label=policy|cache[|full]; replaces the defaults")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="repeatable (default: all)")
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--problems", type=int, default=2, help="problems per family")
    parser.add_argument("--repeats", type=int, default=1, help="rounds over all problems")
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = unmask.load(args.model, device=args.device, dtype=args.dtype)
    configs = [Config.parse(text) for text in args.config] if args.config else HEADLINE
    items = cases(args.family or [], args.split, args.problems, seed=1)
    print({"headline": headline, "outside": outside, "batch": batch}[args.what](model, configs, items, args))
    print("\n" + ", ".join(f"{key} {value}" for key, value in environment(model).items()))


def decode(model: unmask.Model, config: Config, items: list[Case], gen_length: int, batch_size: int) -> dict[str, Any]:
    """Decode once; totals over the problems."""
    began = time.perf_counter()
    results = model.generate([c.problem.prompt for c in items], gen_length, config.policy, config.cache,
                             batch_size=batch_size, eos_stop=config.eos_stop)  # fmt: skip
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "tokens": sum(r.stats.tokens for r in results),
        "nfe": sum(r.stats.nfe for r in results),
        "right": sum(c.correct(r.text) for c, r in zip(items, results, strict=True)),
    }


def headline(model: unmask.Model, configs: list[Config], items: list[Case], args: argparse.Namespace) -> str:
    """Every problem with every decoder in turn, batch size 1."""
    runs: dict[str, list[dict[str, Any]]] = {c.label: [] for c in configs}
    decode(model, configs[-1], items[:1], args.gen_length, 1)
    for _ in range(args.repeats):
        for item in items:
            for config in random.sample(configs, len(configs)):
                runs[config.label].append(decode(model, config, [item], args.gen_length, 1))
                print(f"# {item.family}, {config.label}: {runs[config.label][-1]}", flush=True)
    rate = {label: sum(r["tokens"] for r in rows) / sum(r["seconds"] for r in rows) for label, rows in runs.items()}
    bases = [c.label for c in configs[:2]]
    lines = [f"gen_length {args.gen_length}, batch size 1, n = {len(items)} problems x {args.repeats}", "",
             "| decoder | NFE | TPF | tokens/s | right | " + " | ".join(f"against {b}" for b in bases) + " |",
             "|---|---|---|---|---|" + "---|" * len(bases)]  # fmt: skip
    for config in configs:
        rows = runs[config.label]
        nfe, tokens = sum(r["nfe"] for r in rows), sum(r["tokens"] for r in rows)
        ratios = []
        for base in bases:
            pairs = [_rate(a) / _rate(b) for a, b in zip(rows, runs[base], strict=True) if b["tokens"]]
            ratios.append(f"{rate[config.label] / max(rate[base], 1e-9):.1f}x (median {median(pairs or [0.0]):.1f}x)")
        lines.append(f"| {config.label} | {nfe / len(rows):.1f} | {tokens / nfe:.2f} | {rate[config.label]:.1f} | "
                     f"{sum(r['right'] for r in rows)}/{len(rows)} | {' | '.join(ratios)} |")  # fmt: skip
    return "\n".join(lines)


def _rate(run: dict[str, Any]) -> float:
    return float(run["tokens"] / run["seconds"])


def outside(model: unmask.Model, configs: list[Config], items: list[Case], args: argparse.Namespace) -> str:
    """Share of the time that is not spent in the network, batch size 1, over whole decodes."""
    lines = ["| decoder | forwards | ms per forward | of that outside the model |", "|---|---|---|---|"]
    for config in configs:
        requests = model.requests([c.problem.prompt for c in items], args.gen_length, eos_stop=config.eos_stop)
        steps = [s for _, s in model.run(requests, config.policy, config.cache, 1)]
        total, network = sum(s.seconds for s in steps), sum(s.model_seconds for s in steps)
        lines.append(f"| {config.label} | {len(steps)} | {1e3 * total / len(steps):.2f} | {1 - network / total:.1%} |")
    return "\n".join(lines)


def batch(model: unmask.Model, configs: list[Config], items: list[Case], args: argparse.Namespace) -> str:
    """Tokens per second at batch sizes 1 to 32, sizes interleaved."""
    sizes = (1, 2, 4, 8, 16, 32)
    many = (items * (max(sizes) // len(items) + 1))[: max(sizes)]
    lines = ["| decoder | " + " | ".join(f"batch {size}" for size in sizes) + " | 16 against 1 |",
             "|---" * (len(sizes) + 2) + "|"]  # fmt: skip
    for config in configs[-1:] if not args.config else configs:
        rates: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(max(3, args.repeats)):
            for size in sizes:
                rates[size].append(_rate(decode(model, config, many, args.gen_length, size)))
        ratio = median([b / a for a, b in zip(rates[1], rates[16], strict=True)])
        shown = " | ".join(f"{median(rates[size]):.1f}" for size in sizes)
        lines.append(f"| {config.label}, tokens/s | {shown} | {ratio:.2f}x |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
