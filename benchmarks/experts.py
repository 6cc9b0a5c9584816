"""Measure a mixture of experts: positions sorted by expert, against every expert computing every position.

    python -m benchmarks.experts [--experts 16 64 256] [--positions 1 32 512] [--chosen 8] [--width 512] [--hidden 256]

Both take turns, each repeat in random order; times are medians of processor time on a CPU. `per product` is the time of
`sorted` for a position and an expert that it is sent to: it would be the same everywhere if only the positions routed
cost. `all / sorted` is what sorting gains; experts over chosen ones is the most there is to gain in multiplications.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.experts import Experts, Mixture
from unmask.models.transformer import linear

_SEED = 0


@dataclass(frozen=True)
class Figure:
    """Milliseconds of one layer's experts, for so many positions."""

    experts: int
    chosen: int
    positions: int
    sorted_ms: float
    all_ms: float

    @property
    def cells(self) -> list[str]:
        """A line of the table."""
        each = 1000 * self.sorted_ms / (self.positions * self.chosen)
        times = [f"{self.sorted_ms:.3g}", f"{self.all_ms:.3g}", f"{self.all_ms / self.sorted_ms:.2f}", f"{each:.3g}"]
        return [str(self.experts), str(self.positions), *times]


COLUMNS = ("experts", "positions", "sorted, ms", "all, ms", "all / sorted", "per product, µs")


def every_expert(module: Mixture, x: Tensor) -> Tensor:
    """The same numbers: each expert computes all positions, and those that were not sent to it weigh nothing."""
    chosen, weight = module.router(x)
    shares = torch.zeros(len(x), module.experts.count, dtype=weight.dtype).scatter(1, chosen, weight).to(x.dtype)
    first, second = (
        stack.weight.view(stack.count, -1, stack.weight.shape[1]) for stack in (module.experts_in, module.experts_out)
    )
    out = torch.zeros_like(x)
    for e in range(module.experts.count):
        gate, up = F.linear(x, first[e]).chunk(2, -1)
        out += F.linear(F.silu(gate) * up, second[e]) * shares[:, e, None]
    return out


def mixture(experts: Experts, width: int) -> Mixture:
    """With random weights."""
    draw, module = torch.Generator().manual_seed(_SEED), Mixture(width, experts, linear)
    for weight in module.parameters():
        weight.data.normal_(0.0, 0.02, generator=draw)
    return module.requires_grad_(False)


def _timed(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return 1000 * (time.process_time() - began)


def measure(
    experts: Sequence[int], positions: Sequence[int], chosen: int, width: int, hidden: int, repeats: int
) -> Iterator[Figure]:
    """A figure for each number of experts and of positions.

    Args:
        experts, positions: numbers of each.
        chosen: experts of a position.
        width, hidden: of the layer and of each expert.
        repeats: measurements of each way, of which the median is taken.
    """
    order = random.Random(_SEED)
    for count in experts:
        module = mixture(Experts(count=count, chosen=chosen, width=hidden), width)
        for many in positions:
            x = torch.randn(many, width, generator=torch.Generator().manual_seed(_SEED))
            ways = {"sorted": lambda x=x, m=module: m(x), "all": lambda x=x, m=module: every_expert(m, x)}
            torch.testing.assert_close(*(way() for way in ways.values()), rtol=1e-3, atol=1e-5)
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(repeats):
                for name in order.sample(list(ways), len(ways)):
                    times[name].append(_timed(ways[name]))
            middle = {name: statistics.median(values) for name, values in times.items()}
            yield Figure(count, chosen, many, middle["sorted"], middle["all"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts", description=__doc__.splitlines()[0])
    for name, default in (("experts", [16, 64, 256]), ("positions", [1, 32, 512])):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default)
    for name, number in (("chosen", 8), ("width", 512), ("hidden", 256), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    torch.set_num_threads(1)
    if not as_json:
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    with torch.inference_mode():
        for figure in measure(**given):
            print(json.dumps(asdict(figure)) if as_json else f"| {' | '.join(figure.cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
