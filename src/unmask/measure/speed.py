"""How long one forward takes, how long the matrix products in it take alone, where the rest goes, and memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch

from ..api import pick_device, pick_dtype
from ..core.errors import RequestError
from ..models.random import random_denoiser, shape
from .forward import PARTS, Forward, Parts, Products, Size, Switched
from .memory import peak_bytes

if TYPE_CHECKING:
    from ..models.denoiser import Denoiser
    from ..models.transformer import Transformer

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
    for length, many, part in product(lengths, rows, computed or [0]):
        if length < 2:
            raise RequestError(f"--length must be at least 2 (one token and one mask), got {length}")
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
    weights = sum(w.numel() for b in network.blocks for w in b.parameters() if w.dim() == 2)
    scores = 2 * size.length * arch.width * arch.layers  # q k, and what they weigh
    return 2 * size.rows * (size.computed * (weights + scores) + size.asked * arch.vocab * arch.width)


def least_bytes(network: Transformer, size: Size) -> int:
    """Bytes that one forward must read: the weights once (of the embedding none) and all keys and values."""
    arch, each = network.arch, network.embed.weight.element_size()
    weights = sum(w.numel() for w in network.parameters()) - (0 if arch.tied else network.embed.weight.numel())
    stored = 2 * size.rows * size.length * arch.kv_heads * arch.head_dim * arch.layers
    return each * (weights + stored)
