"""The part ``host``: what a step costs beside the network: kernels, waits for the device, and time it stands idle."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import device as devices
import networks
import torch
from book import Book
from recording import drive
from replay import PUBLISHED, SETTINGS, Item, Stage

SKIP, STEPS = 3, 12  # steps before the trace, and in it
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def items(dry: bool) -> Iterable[Item]:
    """Settings whose steps are traced."""
    if dry:
        return [Item(PUBLISHED, 32, 2)]
    return [
        Item(SETTINGS[which], length, batch, how)
        for which, length, batch in ((0, 256, 1), (3, 256, 1), (5, 256, 1), (0, 256, 8), (1, 256, 1))
        for how in ("graphs", "eager")
    ]


def measure(book: Book, device: torch.device, dry: bool) -> None:
    """Trace some steps of each, and time as many without a trace."""
    stage = Stage(device, dry)
    for item in items(dry):
        if book.has(item.key) or book.left < 4:
            continue
        try:
            book.write(item.key, **_item(stage, item))
        except Exception as error:  # one of them must not cost the others
            book.write(item.key, failed=f"{type(error).__name__}: {error}"[:600])


def _item(stage: Stage, item: Item) -> dict[str, Any]:
    _, _, wanted, model = stage.prepared(item)
    cuda = stage.device.type == "cuda"
    if item.how == "graphs":
        model.graphs = networks.graphs(stage.device)

    def run(profiler: Any) -> tuple[float, int]:
        began, first = 0.0, 0
        last = 0
        for done in drive(model, wanted, item.batch):
            last = done.steps
            if last == SKIP:
                devices.synchronise(stage.device)
                if profiler is not None:
                    profiler.start()
                first, began = last, time.perf_counter()
            if last >= SKIP + STEPS:
                break
        devices.synchronise(stage.device)
        seconds = time.perf_counter() - began if first else 0.0
        if profiler is not None and first:
            profiler.stop()
        return seconds, last - first if first else 0

    run(None)
    run(None)
    seconds, steps = run(None)
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    profiler = torch.profiler.profile(activities=kinds)
    _, traced = run(profiler)
    found = {"steps": steps, "seconds_per_step": seconds / steps if steps else None}
    if not steps or not traced:
        return {**found, "skipped": "too few steps to trace"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return {**found, **counts(events, traced), "traced_steps": traced}


def counts(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Per step: device time and kernels, launches, waits, operations of torch."""
    work = [e for e in events if e.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}]
    calls = [e["name"] for e in events if e.get("cat") in {"cuda_runtime", "cuda_driver"}]
    return {
        "device_seconds_per_step": _covered(work) / 1e6 / steps,
        "kernels_per_step": len(work) / steps,
        "launches_per_step": sum("Launch" in name for name in calls) / steps,
        "waits_per_step": sum(name in WAITS for name in calls) / steps,
        "copies_to_host_per_step": sum("DtoH" in e["name"] for e in work) / steps,
        "operations_per_step": sum(e.get("cat") == "cpu_op" for e in events) / steps,
    }


def _covered(work: list[dict[str, Any]]) -> float:
    """Microseconds in which something ran on the device."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted((float(e["ts"]), float(e["ts"]) + float(e.get("dur", 0))) for e in work):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
