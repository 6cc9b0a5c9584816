"""Quantised weights: time of a forward pass and memory beside bfloat16, and a large model decoded on a small machine.

Run it from the root of the repository; weights are random, drawn and quantised one by one:

    python -m benchmarks.quantised --beside 256 1024 --threads 1   # llada-220m: bfloat16, int8, int4
    python -m benchmarks.quantised --products 256 1024 --layers 4   # of those layers, and nothing else
    python -m benchmarks.quantised --whole int4 --shape llada-8b --threads 2   # memory, and 32 tokens decoded

Times are CPU time, summed over the threads: beside other work it says more than the clock. The forward passes of a
size take turns, and the median of each counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import time
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unmask.api import Model
from unmask.core import heap, threads
from unmask.measure.machine import device_name
from unmask.models.denoiser import Denoiser
from unmask.models.kernels import compiled
from unmask.models.loading import blank
from unmask.models.packing import Scheme
from unmask.models.quantised import KINDS
from unmask.models.random import random_denoiser, shape
from unmask.models.transformer import EAGER
from unmask.models.weights import Checkpoint

from .forward import Forward, Size

POLICY = "vanilla(steps=4,block_length=32)"  # eight tokens a forward pass, where 32 are decoded
_CPU = torch.device("cpu")
_LINEAR = ("qkv_proj", "o", "gate_up", "down")


def repeated(checkpoint: Checkpoint, scheme: Scheme | None) -> Denoiser:
    """A model whose layers hold copies of the same random weights, each its own: minutes less to draw."""
    one = random_denoiser(layered(checkpoint, 1), _CPU, torch.bfloat16, scheme)
    d = checkpoint.description
    network = blank(d.arch, d.context)
    network.embed, network.norm, network.head = one.network.embed, one.network.norm, one.network.head
    for i in range(d.arch.layers):
        network.blocks[i] = deepcopy(one.network.blocks[0])
    network.make_rotary(d.context, _CPU)
    return Denoiser(network.requires_grad_(False), checkpoint.spec())


def layered(checkpoint: Checkpoint, layers: int) -> Checkpoint:
    """The same with so many layers."""
    key = "n_layers" if "n_layers" in checkpoint.config else "num_hidden_layers"
    return replace(checkpoint, config=checkpoint.config | {key: layers})


def whole(checkpoint: Checkpoint, scheme: Scheme | None, canvas: int, length: int, again: bool) -> dict[str, Any]:
    """Decode a response with the whole model."""
    denoiser = repeated(checkpoint, scheme) if again else random_denoiser(checkpoint, _CPU, torch.bfloat16, scheme)
    prompt = torch.arange(canvas - length).tolist()
    begun, cpu = time.perf_counter(), time.process_time()
    (result,) = Model(denoiser, None).generate(prompt, length, POLICY, "none", ignore_eos=True)
    took, used = time.perf_counter() - begun, time.process_time() - cpu
    return {
        "seconds_to_decode": took, "cpu_seconds_to_decode": used,
        "tokens": len(result.tokens), "nfe": result.stats.nfe, "cpu_seconds_per_pass": used / result.stats.nfe,
        "weights_GB": held(denoiser.network) / 1e9,
        "peak_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }  # fmt: skip


def held(network: nn.Module) -> int:
    """Bytes of the weights, scales included."""
    return sum(p.numel() * p.element_size() for p in network.parameters())


def beside(
    checkpoint: Checkpoint, kinds: list[str], sizes: list[int], layers: int, repeats: int, compile: bool
) -> list[dict[str, Any]]:
    """CPU time of a forward pass, of so many layers (0: all), the kinds in turn."""
    few = layered(checkpoint, layers) if layers else checkpoint
    models = {kind: random_denoiser(few, _CPU, torch.bfloat16, Scheme.parse(kind)) for kind in kinds}
    for kind, model in models.items():
        model.network.use(compiled(EAGER, "cpu", rounds=kind == "int8") if compile else EAGER)
    found = []
    for size in sizes:
        calls = {kind: Forward(model, Size(size, 1, size)) for kind, model in models.items()}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        with torch.inference_mode():
            for _ in range(repeats + 1):
                for kind, call in calls.items():
                    begun = time.process_time()
                    call()
                    times[kind].append(time.process_time() - begun)
        middle = {kind: statistics.median(values[1:]) for kind, values in times.items()}
        found.append(
            {
                "layers": few.description.arch.layers,
                "canvas": size,
                "cpu_ms": {kind: 1e3 * value for kind, value in middle.items()},
                "of_first": {kind: value / middle[kinds[0]] for kind, value in middle.items()},
                "weights_MB": {kind: held(model.network) / 1e6 for kind, model in models.items()},
            }
        )
    return found


def products(checkpoint: Checkpoint, sizes: list[int], layers: int, repeats: int) -> list[dict[str, Any]]:
    """CPU time of the products of a layer alone, the mean over so many: bfloat16, and integers with their scales."""
    few = layered(checkpoint, layers or 1)
    models = {kind: random_denoiser(few, _CPU, torch.bfloat16, Scheme.parse(kind)) for kind in ("none", "int8")}
    found = []
    for size in sizes:
        times: dict[str, dict[str, list[float]]] = {}
        inputs: dict[int, Tensor] = {}
        with torch.inference_mode():
            for _ in range(repeats + 1):
                for name, kind in itertools.product(_LINEAR, models):
                    every = [getattr(block, name) for block in models[kind].network.blocks]
                    many = every[0].in_features
                    x = inputs.setdefault(many, torch.randn(size, many).mul_(20).bfloat16())
                    given = x if kind == "none" else x.to(torch.int8)
                    begun = time.process_time()
                    for linear in every:
                        linear(given) if kind == "none" else linear.product(given, torch.bfloat16)
                    took = (time.process_time() - begun) / len(every)
                    times.setdefault(name, {}).setdefault(kind, []).append(took)
        middle = {n: {k: 1e3 * statistics.median(v[1:]) for k, v in held.items()} for n, held in times.items()}
        whole = {kind: sum(held[kind] for held in middle.values()) for kind in models}
        found.append({"positions": size, "cpu_ms": middle, "layer": whole, "of_first": whole["int8"] / whole["none"]})
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llada-220m")
    parser.add_argument("--whole", metavar="KIND", help="decode with the whole model in one kind")
    parser.add_argument(
        "--repeat-layers", action="store_true", help="all layers hold copies of the first one's weights"
    )
    parser.add_argument("--compile", action="store_true", help="compile what stands around the products")
    parser.add_argument("--canvas", type=int, default=64)
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", type=int, nargs="*", default=[], help="canvases to time kinds side by side at")
    parser.add_argument("--products", type=int, nargs="*", default=[], help="positions to time products alone at")
    parser.add_argument("--layers", type=int, default=0, help="of the models timed side by side; 0: all")
    parser.add_argument("--kinds", nargs="+", default=["none", *KINDS], choices=["none", *KINDS], help="side by side")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    heap.keep_freed()
    threads.fix(given.threads)
    checkpoint = shape(given.shape)
    about = {"shape": given.shape, "machine": device_name(_CPU), "threads": given.threads, "torch": torch.__version__}
    about |= {"isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL")}
    if given.beside:
        for line in beside(checkpoint, given.kinds, given.beside, given.layers, given.repeats, given.compile):
            print(json.dumps(about | line), flush=True)
    if given.products:
        for line in products(checkpoint, given.products, given.layers, given.repeats):
            print(json.dumps(about | line), flush=True)
    if given.whole:
        line = whole(checkpoint, Scheme.parse(given.whole), given.canvas, given.gen_length, given.repeat_layers)
        print(json.dumps(about | {"kind": given.whole, "canvas": given.canvas} | line))


if __name__ == "__main__":
    main()
