"""How long one forward pass takes, how long its matrix products take alone, where the rest goes, and memory.

Run it from the root of the repository; docs/speed.md describes it:

    python -m benchmarks.speed --shape llada-8b --length 256 --device cuda
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch

import unmask
from unmask.api import BUNDLED_NAME, pick_device, pick_dtype
from unmask.core import heap, threads
from unmask.core.errors import RequestError
from unmask.measure.machine import device_name
from unmask.models.random import random_denoiser, shape

from .forward import PARTS, Forward, Parts, Products, Size, Switched
from .memory import peak_bytes

if TYPE_CHECKING:
    from unmask.models.denoiser import Denoiser
    from unmask.models.transformer import Transformer

_AT_LEAST = 0.005  # seconds of one measurement: what is shorter is repeated


@dataclass(frozen=True)
class Figure:
    """What one size costs.

    Attributes:
        size: what was measured.
        milliseconds: of one forward, the median; ``spread``: quartiles.
        products: milliseconds of the matrix products alone, of the layers, the attention and the head.
        parts: milliseconds by part (``PARTS``); what is left of the forward is ``"other"``.
        peak_bytes: of the tensors that are alive at most, on top of weights and stored keys and values.
        operations: floating point operations of the products.
        bytes: weights, keys and values, which every forward must read at least once.
        compiled: milliseconds of one forward with compiled parts; None: not asked for.
        compile_seconds: what the first compiled forward took longer.
    """

    size: Size
    milliseconds: float
    spread: tuple[float, float]
    products: float
    parts: Mapping[str, float]
    peak_bytes: int
    operations: int
    bytes: int
    compiled: float | None = None
    compile_seconds: float | None = None

    @property
    def ratio(self) -> float:
        """Share of the forward's time that the products alone take."""
        return self.products / self.milliseconds


def sizes(lengths: Sequence[int], rows: Sequence[int], computed: Sequence[int]) -> list[Size]:
    """All combinations, each once; nothing in ``computed``: whole canvases.

    Raises:
        RequestError: a canvas shorter than 2 (a prompt and a mask), no rows, or more computed than there is.
    """
    found = []
    for name, least, values in (("length", 2, lengths), ("batch-size", 1, rows), ("computed", 1, computed)):
        if min(values, default=least) < least:
            raise RequestError(f"--{name} must be at least {least}, got {min(values)}")
    for length, many, part in product(lengths, rows, computed or [0]):
        if part > length:
            raise RequestError(f"--computed {part} is more than --length {length}")
        found.append(Size(length, many, part or length))
    return list(dict.fromkeys(found))


def measure(model: Denoiser, wanted: Sequence[Size], repeats: int, compile: bool = False) -> Iterator[Figure]:
    """Measure one size after the other; within a size all that is compared takes turns.

    Args:
        model: its rotary table must reach; see :func:`reach`.
        wanted: sizes.
        repeats: measurements of each thing, of which the median is taken.
        compile: measure compiled parts as well.
    """
    with torch.inference_mode():
        for size in wanted:
            yield _measure(model, size, repeats, compile)


def random_model(name: str, device: str, dtype: str) -> Denoiser:
    """A model of random weights; ``name`` as in :func:`unmask.models.random.shape`, the others as in ``unmask.load``.

    Raises:
        ModelError: no such architecture, device or dtype, or too large for the machine.
    """
    checkpoint, where = shape(name), pick_device(device)
    return random_denoiser(checkpoint, where, pick_dtype(dtype, checkpoint, where))


def reach(model: Denoiser, length: int) -> None:
    """Lengthen the table of rotary embeddings where canvases are longer than the model's context: what it then says is
    worth nothing, how long it takes is the same.
    """
    network = model.network
    if len(network.rotary) <= length:
        network.make_rotary(length, network.device)


def _measure(model: Denoiser, size: Size, repeats: int, compile: bool) -> Figure:
    network, forward = model.network, Forward(model, size)
    rows = forward.rows
    calls: dict[str, Callable[[], object]] = {"forward": forward, "products": Products(network, size)}
    calls |= Parts(network, size, rows).calls()
    first = None
    if compile:
        compiled = Switched(network, forward)
        before = _wall(forward, network.device)  # the second one: the first may have found kernels and memory
        before = min(before, _wall(forward, network.device))
        first = max(0.0, _wall(compiled, network.device) - before)
        calls["compiled"] = compiled
    times = interleaved(calls, network.device, repeats)
    middle = {name: 1e3 * median(values) for name, values in times.items()}
    low, high = _quartiles([1e3 * t for t in times["forward"]])
    return Figure(
        size,
        middle["forward"],
        (low, high),
        middle["products"],
        _shares(middle),
        peak_bytes(forward, network.device),
        operations(network, size),
        least_bytes(network, size),
        middle.get("compiled"),
        first,
    )


def _shares(middle: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds by part: the norms are taken out of the parts that they were measured with."""
    half = middle["norm"] / 2  # two of a size in each layer
    parts = {name: middle[name] for name in PARTS}
    for name in ("qkv, rotary", "mlp"):
        parts[name] = max(0.0, parts[name] - half)
    return parts | {"other": max(0.0, middle["forward"] - sum(parts.values()))}


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each call: all of them in a random order, then again, so that what slows the machine slows all."""
    rng = random.Random(0)
    often = {}
    for name, call in calls.items():
        first = seconds(call, 1, device)  # kernels are chosen and memory is taken: not what one call takes
        often[name] = 1 if first > 1 else max(1, round(_AT_LEAST / max(seconds(call, 1, device), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name in rng.sample(list(calls), len(calls)):
            found[name].append(seconds(calls[name], often[name], device))
    return found


def seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Of one call, the mean of so many: CUDA events, or the processor time of the process on a CPU, which other work on
    the machine does not lengthen; with several threads wall time, for their processor times would add up.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3 / times
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    for _ in range(times):
        call()
    return (clock() - began) / times


def _wall(call: Callable[[], object], device: torch.device) -> float:
    """Seconds by the clock on the wall: compilers run in other processes."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def operations(network: Transformer, size: Size) -> int:
    """Floating point operations of the matrix products of one forward; an addition and a multiplication are two."""
    arch = network.arch
    weights = sum(w.numel() for b in network.blocks for w in b.parameters() if w.dim() == 2) - network.idle
    scores = 2 * size.length * arch.heads * arch.head_dim * arch.layers  # q k, and what they weigh
    return 2 * size.rows * (size.computed * (weights + scores) + size.asked * arch.vocab * arch.width)


def least_bytes(network: Transformer, size: Size) -> int:
    """Bytes that one forward must read: the weights once (of the embedding none) and all keys and values."""
    arch, each = network.arch, network.embed.weight.element_size()
    weights = sum(w.numel() for w in network.parameters()) - (0 if arch.tied else network.embed.weight.numel())
    stored = 2 * size.rows * size.length * arch.kv_heads * arch.head_dim * arch.layers
    return each * (weights + stored)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Measure forward passes.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", "-m", help="folder or hub id; default: the bundled model")
    what.add_argument("--shape", metavar="NAME|FILE", help="random weights of llada-8b, dream-7b or a config.json")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16, float64 or auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch takes")
    parser.add_argument("--length", type=int, nargs="+", default=[64, 256, 1024], help="positions of a canvas")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], help="sequences of a batch")
    parser.add_argument("--computed", type=int, nargs="+", default=[], help="positions computed of each; default all")
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each thing; the median counts")
    parser.add_argument("--peak-flops", type=float, help="operations per second that the device can do")
    parser.add_argument("--bandwidth", type=float, help="bytes per second that the device can read")
    parser.add_argument("--compile", action="store_true", help="measure with compiled parts as well")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; the exit code."""
    given = options(arguments)
    try:
        _run(given)
    except unmask.UnmaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _run(given: argparse.Namespace) -> None:
    limits = {"peak_flops": given.peak_flops, "bandwidth": given.bandwidth}
    for name, value in limits.items():
        if value is not None and not 0 < value < math.inf:
            raise RequestError(f"--{name.replace('_', '-')} must be a number above 0, got {value:g}")
    if given.repeats < 1:
        raise RequestError(f"--repeats must be at least 1, got {given.repeats}")
    wanted = sizes(given.length, given.batch_size, given.computed)
    if given.threads:
        threads.fix(given.threads)
    if given.shape:
        denoiser = random_model(given.shape, given.device, given.dtype)
    else:
        denoiser = unmask.load(given.model, given.device, given.dtype).denoiser
    reach(denoiser, max(size.length for size in wanted))
    about = {
        "model": given.shape or given.model or BUNDLED_NAME,
        "device": device_name(denoiser.network.device),
        "dtype": str(denoiser.network.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if not given.json:
        print(", ".join(f"{value}" if key != "threads" else f"{value} threads" for key, value in about.items()))
    for index, figure in enumerate(measure(denoiser, wanted, given.repeats, given.compile)):
        if given.json:
            print(json.dumps(about | record(figure, limits)), flush=True)
            continue
        cells = _cells(figure, limits)
        if index == 0:
            print("\n| " + " | ".join(cells) + " |\n|" + " --- |" * len(cells))
        print("| " + " | ".join(cells.values()) + " |", flush=True)


def record(f: Figure, limits: Mapping[str, float | None]) -> dict[str, Any]:
    """What ``--json`` prints of one size; ``limits``: what the device can do in a second, by name."""
    compiled = {} if f.compiled is None else {"compiled_ms": f.compiled, "compile_seconds": f.compile_seconds}
    return {
        "length": f.size.length,
        "batch_size": f.size.rows,
        "computed": f.size.computed,
        "ms": f.milliseconds,
        "quartiles": list(f.spread),
        "products_ms": f.products,
        "ratio": f.ratio,
        "parts_ms": dict(f.parts),
        "peak_bytes": f.peak_bytes,
        "operations": f.operations,
        "bytes": f.bytes,
        **compiled,
        **_reached(f, limits),
    }


def _reached(f: Figure, limits: Mapping[str, float | None]) -> dict[str, float]:
    """Shares of what the device can do in the time of the forward pass."""
    done = {"peak_flops": f.operations, "bandwidth": f.bytes}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return {f"share_of_{name}": done[name] / (limit * f.milliseconds / 1e3) for name, limit in given.items()}


def _cells(f: Figure, limits: Mapping[str, float | None]) -> dict[str, str]:
    """A line of the table, by column."""
    cells = {
        "T": str(f.size.length),
        "rows": str(f.size.rows),
        "computed": str(f.size.computed),
        "ms": f"{f.milliseconds:.4g} ({f.spread[0]:.4g} - {f.spread[1]:.4g})",
        "products, ms": f"{f.products:.4g}",
        "ratio": f"{100 * f.ratio:.0f} %",
        **{name: f"{100 * value / f.milliseconds:.0f} %" for name, value in f.parts.items()},
        "peak, MB": f"{f.peak_bytes / 1e6:.3g}",
    }
    if f.compiled is not None and f.compile_seconds is not None:
        cells |= {"compiled, ms": f"{f.compiled:.4g}", "compiling, s": f"{f.compile_seconds:.1f}"}
    shares = {name.removeprefix("share_of_"): value for name, value in _reached(f, limits).items()}
    return cells | {name: f"{100 * value:.1f} %" for name, value in shares.items()}


if __name__ == "__main__":
    heap.keep_freed()  # as the command line does
    sys.exit(main())
