"""What lies behind costs: time and memory of a forward pass with the cache ``blockwise``, by the length so far.

    python -m benchmarks.blockwise [--lengths 1024 2048 4096 8192 16384] [--memory-only]

The small block model with its context stretched; its text means nothing there. A forward pass computes one block of 16
positions, all lengths in turn, one thread. Attention reads all keys, so its share grows with the length; all else is
constant. Prints a table: median time of a forward pass in ms, of the prompt's own in s, state of a row in MiB, and the
largest resident memory of the process so far in MiB.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import replace

import torch

import unmask
from unmask import registry
from unmask.core.state import row_bytes
from unmask.engine.admission import fresh_state
from unmask.engine.loop import State, step
from unmask.engine.request import Request
from unmask.models.denoiser import Denoiser

POLICY, CACHE, ROUNDS = "vanilla", "blockwise", 40


def stretched(context: int) -> Denoiser:
    """The small block model for texts of so many positions."""
    own = unmask.load("unmask-tiny-block", device="cpu", dtype="float32").denoiser
    own.network.make_rotary(context, "cpu")
    return Denoiser(own.network, replace(own.spec, context=context))


def begun(model: Denoiser, length: int) -> tuple[State, float]:
    """The state of a row behind its first forward pass, and how long that took."""
    prompt = torch.randint(5, 500, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    request = Request(0, prompt, 64, registry.policy(POLICY), registry.cache(CACHE))
    state, began = fresh_state(model, [request]), time.perf_counter()
    state, _ = step(model, request.cache, request.policy, state, 0)
    return state, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--memory-only", action="store_true", help="the prompt's forward pass alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, rows, first, told = stretched(max(options.lengths) + 128), {}, {}, {}
    for length in options.lengths:
        rows[length], first[length] = begun(model, length)
        told[length] = row_bytes(rows[length].cache) / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times: dict[int, list[float]] = {length: [] for length in options.lengths}
    policy, cache = registry.policy(POLICY), registry.cache(CACHE)
    for _ in range(0 if options.memory_only else ROUNDS):
        for length, state in rows.items():
            began = time.perf_counter()
            rows[length], _ = step(model, cache, policy, state, 1)
            times[length].append(time.perf_counter() - began)
    print("| positions before | forward pass, ms | the prompt's, s | state of a row, MiB | resident, MiB |")
    print("|---|---|---|---|---|")
    for length in options.lengths:
        each = f"{1000 * statistics.median(times[length]):.1f}" if times[length] else "-"
        print(f"| {length} | {each} | {first[length]:.2f} | {told[length][0]:.1f} | {told[length][1]:.0f} |")


if __name__ == "__main__":
    main()
