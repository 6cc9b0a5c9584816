"""What entering and leaving cost while others are decoded, and what one long prompt costs those beside it.

Run it from the root of the repository:

    python -m benchmarks.churn --threads 1

Aims: entering and leaving take at most 3 % of the engine's time, and a long prompt among short ones makes the whole
take at most 1.1 times what the two take apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import unmask
from unmask.measure.problems import source
from unmask.measure.run import Batch, Setting, decode

POLICY = "slowfast(tau_high=0.998,window=1,block_length=32)"
CACHES = ("none", "dual", "dllm")
LONG, SHORT = 2000, 32  # tokens of prompts


@dataclass(frozen=True)
class Churn:
    """What a cache costs: seconds in the engine, of these entering and leaving; steps in which a request entered."""

    cache: str
    seconds: float
    moving: float
    entered: int
    peak: int | None
    entering: int | None

    @property
    def share(self) -> float:
        """Of the engine's time."""
        return self.moving / self.seconds


def churn(lm: unmask.Model, cache: str, task: str, n: int, gen_length: int, batch_size: int, policy: str) -> Churn:
    """Decode problems, each entering as another leaves."""
    problems = source(task, n, "valid")
    setting = Setting(policy, cache, gen_length, batch_size, arrivals="max")
    row = decode(lm, Batch(setting, problems, 0, n))
    return Churn(cache, row["engine_seconds"], row["moving_seconds"], row["entered"], row["peak_bytes"],
                 row["entering_peak_bytes"])  # fmt: skip


def mix(lm: unmask.Model, short: int, gen_length: int, batch_size: int) -> tuple[float, float, float]:
    """Seconds of one long prompt among short ones, of the short ones alone, and of the long one alone.

    With one thread on a CPU these are seconds of the processor, which other work on the machine does not lengthen.
    """
    alone = lm.denoiser.network.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    ids = [i for i in range(5, 400) if i not in (lm.denoiser.spec.mask, *lm.denoiser.spec.eos)]
    long = (ids * 9)[:LONG]
    many = [[ids[(i + j) % len(ids)] for j in range(SHORT)] for i in range(short)]
    times = []
    for prompts in ([long, *many], many, [long]):
        began = clock()
        lm.generate(prompts, gen_length, POLICY, "none", batch_size=batch_size, ignore_eos=True, seed=0)
        times.append(clock() - began)
    return times[0], times[1], times[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description="Measure entering and leaving.")
    parser.add_argument("--model", "-m", help="folder or hub id; default: the bundled model")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch takes")
    parser.add_argument("--task", default="word_problem")
    parser.add_argument("-n", type=int, default=64, help="problems")
    parser.add_argument("--gen-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--policy", default=POLICY)
    parser.add_argument("--short", type=int, default=99, help="short prompts beside the long one")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    lm = unmask.load(given.model)
    if given.n:
        _caches(lm, given)
    if given.short:
        together, many, long = mix(lm, given.short, 36, given.batch_size)
        print(f"\n{given.short} prompts of {SHORT} tokens and one of {LONG}: {together:.2f} s; "
              f"apart {many:.2f} + {long:.2f} s: {together / (many + long):.2f}x")  # fmt: skip
    return 0


def _caches(lm: unmask.Model, given: argparse.Namespace) -> None:
    print("| cache | seconds | entering, leaving | share | entered | peak, MB | of these steps, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for cache in CACHES:
        one = churn(lm, cache, given.task, given.n, given.gen_length, given.batch_size, given.policy)
        memory: list[Any] = ["" if b is None else f"{b / 1e6:.0f}" for b in (one.peak, one.entering)]
        cells = [f"`{one.cache}`", f"{one.seconds:.2f}", f"{one.moving:.3f}", f"{100 * one.share:.2f} %", one.entered]
        print("| " + " | ".join(map(str, [*cells, *memory])) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
