"""What `make demo` runs: held-out problems of every family, decoded plainly and fast by the model that is shipped.

python examples/demo.py [--each 2] [--gen-length 256]
"""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

import unmask
from unmask.tasks import FAMILIES, Problem, problems

PLAIN = ("vanilla", "none")
FAST = ("slowfast", "dllm")


def answer(lm: unmask.Model, several: Sequence[Problem], length: int, policy: str, cache: str) -> list[unmask.Result]:
    """Responses, one problem at a time."""
    return [lm.generate(p.prompt, gen_length=length, policy=policy, cache=cache)[0] for p in several]


def show(console: Console, problem: Problem, plain: unmask.Result, fast: unmask.Result) -> None:
    """One problem with both responses."""
    check = FAMILIES[problem.family].check
    console.rule(problem.family, align="left")
    console.print(problem.prompt, markup=False, highlight=False, style="dim")
    table = Table(box=None, pad_edge=False, padding=(0, 4, 0, 0))
    for name, result in ((" + ".join(PLAIN[:1]), plain), (" + ".join(FAST), fast)):
        verdict = "right" if check(problem, result.text) else "wrong"
        table.add_column(f"{name}: {result.stats.nfe} forwards, {verdict}", overflow="fold")
    table.add_row(shortened(plain.text), shortened(fast.text))
    console.print(table, markup=False, highlight=False)
    console.print()


def shortened(text: str, lines: int = 6) -> str:
    """The first lines of a text."""
    split = text.splitlines()
    return "\n".join(
        split if len(split) <= lines else [*split[: lines - 1], f"... {len(split) - lines + 1} more lines"]
    )


def summary(
    console: Console, several: Sequence[Problem], plain: list[unmask.Result], fast: list[unmask.Result]
) -> None:
    """The two side by side."""
    table = Table("decoding", "right", "forwards", "tokens per forward", "tokens/s", box=None, padding=(0, 3, 0, 0))
    rates = []
    for name, results in (("vanilla", plain), (" + ".join(FAST), fast)):
        right = sum(FAMILIES[p.family].check(p, r.text) for p, r in zip(several, results, strict=True))
        tokens, nfe = sum(r.stats.tokens for r in results), sum(r.stats.nfe for r in results)
        rates.append(tokens / sum(r.stats.seconds for r in results))
        table.add_row(name, f"{right} of {len(results)}", f"{nfe}", f"{tokens / nfe:.2f}", f"{rates[-1]:.0f}")
    console.print(table, highlight=False)
    console.print(
        f"\n{rates[1] / rates[0]:.1f} times the tokens per second, on {torch.get_num_threads()} CPU thread(s)."
    )


def main() -> None:
    """Decode and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=1, help="problems of each family")
    parser.add_argument("--gen-length", type=int, default=256)
    args = parser.parse_args()
    console = Console()
    lm = unmask.load()
    several = [p for family in FAMILIES for p in problems(family, "test", args.each)]
    lm.generate(several[0].prompt, gen_length=args.gen_length)  # the first run warms up the machine
    plain = answer(lm, several, args.gen_length, *PLAIN)
    fast = answer(lm, several, args.gen_length, *FAST)
    for problem, one, other in zip(several, plain, fast, strict=True):
        show(console, problem, one, other)
    summary(console, several, plain, fast)


if __name__ == "__main__":
    main()
