"""Measure decoding on a quiet machine and beside a process that keeps one processor busy.

    python -m benchmarks.threads [--rounds 5] [--case tiny-1 --case tiny-16] [--json]

Three ways to choose the threads of an operation are compared, each in a process of its own: `torch` takes its own
number for everything and lets threads wait as long as its OpenMP likes (as before there was a choice), `one` takes one
thread, `chosen` is what the command line does. They take turns, in both situations; medians and quartiles are of all
rounds. `beside / quiet` is what the busy processor costs, `quiet / torch` what the choice costs on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "Mia has {} pens. Mia buys {} pens. How many pens does Mia have now?"
SHAPES = {"512": (512, 8, 1536), "1024": (1024, 4, 3072)}  # width, layers, size of the MLP
CASES = {  # model, batch, calls of one measurement
    "tiny-1": ("tiny", 1, 4),
    "tiny-4": ("tiny", 4, 2),
    "tiny-16": ("tiny", 16, 3),
    "vanilla-1": ("vanilla", 1, 1),  # gen_length 256, as published
    "512-1": ("512", 1, 1),
    "512-16": ("512", 16, 1),
    "1024-1": ("1024", 1, 1),
}
WAYS = ("torch", "one", "chosen")
SPIN = "while True: pass"


def caller(model: str, batch: int) -> Callable[[], None]:
    """What is measured: a batch of answers of the bundled model, or of responses of a random one."""
    import torch

    import unmask

    if model in {"tiny", "vanilla"}:
        lm = unmask.load()
        prompts: list[Any] = [PROMPT.format(2 + i % 7, 1 + i % 5) for i in range(batch)]
        given: dict[str, Any] = {} if model == "tiny" else {"policy": "vanilla", "cache": "none", "gen_length": 256}
        return lambda: void(lm.generate(prompts, seed=0, **given))
    from unmask.api import Model
    from unmask.models.random import SHAPES as PUBLISHED
    from unmask.models.random import random_denoiser
    from unmask.models.weights import Checkpoint

    width, layers, ffn = SHAPES[model]
    sizes = {"d_model": width, "n_heads": width // 64, "n_layers": layers, "mlp_hidden_size": ffn}
    ids = {"embedding_size": 8192, "mask_token_id": 8191, "eos_token_id": 8190}
    checkpoint = Checkpoint(Path(model), PUBLISHED["llada-8b"] | sizes | ids)
    denoiser = random_denoiser(checkpoint, torch.device("cpu"), torch.float32)
    ours = [[5 + i] * 32 for i in range(batch)]
    return lambda: void(Model(denoiser, None).generate(ours, 32, "vanilla(steps=8)", "none", ignore_eos=True, seed=0))


def void(_: object) -> None:
    """Nothing of it is needed."""


def work(way: str) -> None:
    """A process that measures: reads the name of a case per line, writes seconds per call."""
    if way == "chosen":
        from unmask.core.waiting import bound_waiting

        bound_waiting(os.environ)
    from unmask.core import heap, threads

    heap.keep_freed()
    if way != "chosen":
        import torch

        threads.fix(1 if way == "one" else torch.get_num_threads())
    calls: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        name = line.strip()
        model, batch, count = CASES[name]
        if name not in calls:
            calls[name] = caller(model, batch)
            calls[name]()
        began = time.perf_counter()
        for _ in range(count):
            calls[name]()
        print((time.perf_counter() - began) / count, flush=True)


def ask(process: subprocess.Popen[str], case: str) -> float:
    """One measurement."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(case + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(cases: list[str], rounds: int) -> dict[tuple[str, str, bool], list[float]]:
    """Seconds by case, way and whether a processor was busy."""
    free = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    start = [sys.executable, __file__, "--way"]
    workers = {
        way: subprocess.Popen([*start, way], env=free, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for way in WAYS
    }
    found: dict[tuple[str, str, bool], list[float]] = {}
    try:
        for case in cases:
            for worker in workers.values():
                ask(worker, case)
        for _ in range(rounds):
            for busy in (False, True):
                spinner = subprocess.Popen([sys.executable, "-c", SPIN]) if busy else None
                try:
                    time.sleep(0.2)
                    for case in cases:
                        for way, worker in workers.items():
                            found.setdefault((case, way, busy), []).append(ask(worker, case))
                finally:
                    if spinner:
                        spinner.kill()
                        spinner.wait()
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="Measurements of each thing in each situation; 5.")
    parser.add_argument("--case", action="append", choices=CASES, help="What to decode; repeatable; all.")
    parser.add_argument("--json", action="store_true", help="Print JSON lines instead of a table.")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        work(given.way)
        return
    cases, before = given.case or list(CASES), os.getloadavg()[0]
    found = measure(cases, given.rounds)
    if not given.json:
        print(f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} processors\n")
        print("| case | threads | quiet, ms | beside, ms | beside / quiet | quiet / torch |\n|" + " --- |" * 6)
    for case in cases:
        base = statistics.median(found[case, "torch", False])
        for way in WAYS:
            quiet, busy = (1000 * statistics.median(found[case, way, busy]) for busy in (False, True))
            if given.json:
                each = {"quiet": found[case, way, False], "beside": found[case, way, True]}
                print(json.dumps({"case": case, "threads": way, "load": before, **each}))
            else:
                cells = [case, way, *(spread(found[case, way, busy]) for busy in (False, True))]
                print("| " + " | ".join([*cells, f"{busy / quiet:.2f}", f"{quiet / base / 1000:.2f}"]) + " |")


def spread(seconds: list[float]) -> str:
    """Median and quartiles in milliseconds."""
    low, middle, high = (
        statistics.quantiles([1000 * s for s in seconds], n=4) if len(seconds) > 1 else [1000 * seconds[0]] * 3
    )
    return f"{middle:.0f} ({low:.0f} - {high:.0f})"


if __name__ == "__main__":
    main()
