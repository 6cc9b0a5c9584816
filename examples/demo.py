"""What `make demo` runs: held-out problems of every family, decoded one token at a time and fast by unmask-tiny.

python examples/demo.py [--each 1] [--gen-length 256] [--published]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

import unmask
from unmask.tasks import FAMILIES, Problem, problems


@dataclass(frozen=True)
class Way:
    """One way to decode."""

    title: str
    policy: str
    cache: str = "none"
    ignore_eos: bool = False

    def answer(self, lm: unmask.Model, several: Sequence[Problem], length: int) -> list[unmask.Result]:
        """Responses, one problem at a time, as one person asking would see it."""
        return [lm.generate(p.prompt, length, self.policy, self.cache, ignore_eos=self.ignore_eos)[0] for p in several]


PUBLISHED = Way("vanilla, no early stop", "vanilla", ignore_eos=True)
PLAIN = Way("vanilla", "vanilla")
FAST = Way("slowfast + dllm", "slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)", "dllm(kp=2,kr=1)")


def right(problem: Problem, result: unmask.Result) -> bool:
    """Whether a program finds the response correct."""
    return FAMILIES[problem.family].check(problem, result.text)


def show(console: Console, problem: Problem, plain: unmask.Result, fast: unmask.Result) -> None:
    """One problem with both responses."""
    console.rule(problem.family, align="left")
    console.print(problem.prompt, markup=False, highlight=False, style="dim")
    table = Table(box=None, pad_edge=False, padding=(0, 4, 0, 0))
    for way, result in ((PLAIN, plain), (FAST, fast)):
        verdict = "right" if right(problem, result) else "wrong"
        table.add_column(f"{way.title}: {result.stats.nfe} forward passes, {verdict}", overflow="fold")
    table.add_row(shortened(plain.text), shortened(fast.text))
    console.print(table, markup=False, highlight=False)
    console.print()


def shortened(text: str, lines: int = 6) -> str:
    """The first lines of a text."""
    split = text.splitlines()
    return "\n".join(
        split if len(split) <= lines else [*split[: lines - 1], f"... {len(split) - lines + 1} more lines"]
    )


def rate(results: Sequence[unmask.Result]) -> float:
    """Response tokens before the end of text, per second."""
    return sum(r.stats.tokens for r in results) / sum(r.stats.seconds for r in results)


def summary(console: Console, several: Sequence[Problem], runs: Sequence[tuple[Way, list[unmask.Result]]]) -> None:
    """All ways side by side."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "right", "forward passes", "tokens/pass", "tokens/s", "speed-up"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for way, results in runs:
        correct = sum(map(right, several, results))
        tokens, nfe = sum(r.stats.tokens for r in results), sum(r.stats.nfe for r in results)
        speed = rate(results)
        row = (f"{correct} of {len(results)}", f"{nfe}", f"{tokens / nfe:.2f}", f"{speed:.0f}")
        table.add_row(way.title, *row, f"{speed / rate(runs[0][1]):.1f}x")
    console.print(table, highlight=False)


def main() -> None:
    """Decode and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=1, help="problems of each family")
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument(
        "--published",
        action="store_true",
        help="also vanilla as published, which fills all of gen_length",
    )
    args = parser.parse_args()
    console = Console()
    lm = unmask.load()
    several = [p for family in FAMILIES for p in problems(family, "test", args.each)]
    FAST.answer(lm, several[:1], args.gen_length)  # the first run warms the machine up
    runs = []
    for way in (PLAIN, FAST, *([PUBLISHED] if args.published else [])):
        with console.status(f"{len(several)} problems, {way.title} ..."):
            runs.append((way, way.answer(lm, several, args.gen_length)))
    for problem, plain, fast in zip(several, runs[0][1], runs[1][1], strict=True):
        show(console, problem, plain, fast)
    summary(console, several, runs)
    place = str(lm.denoiser.network.device)
    threads = f", {torch.get_num_threads()} threads" if place == "cpu" else ""
    console.print(f"\n{len(several)} problems one at a time, gen_length {args.gen_length}, on {place}{threads}.")


if __name__ == "__main__":
    main()
