"""The device: its name, its clock, and two ceilings of it, measured: copying memory and a large matrix product."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from book import Book, latest


@dataclass(frozen=True)
class Ceilings:
    """``bandwidth`` bytes per second, read and written, of a copy; ``product`` operations per second in bfloat16."""

    bandwidth: float
    product: float

    def seconds(self, bytes_: float, operations: float) -> float:
        """The least time that moving so many bytes and so many operations can take."""
        return max(bytes_ / self.bandwidth, operations / self.product)


def pick(dry: bool) -> torch.device:
    """The GPU; in a dry run the CPU."""
    if dry:
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --dry-run needs none")
    return torch.device("cuda")


def name(device: torch.device) -> str:
    """What records call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: between two CUDA events; on a CPU by the clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def times(call: Callable[[], Any], device: torch.device, budget: float = 0.4, most: int = 25) -> list[float]:
    """Seconds of several calls after two that are not counted, 3 to ``most`` of them in about ``budget`` seconds."""
    budget = budget if device.type == "cuda" else budget / 16
    for _ in range(2):
        call()
    synchronise(device)
    found = [timed(call, device)]
    while len(found) < 3 or (len(found) < most and sum(found) < budget):
        found.append(timed(call, device))
    return found


def held(device: torch.device) -> int:
    """Bytes in use now, from where :func:`peak` begins anew; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int:
    """Bytes in use at most since :func:`held`, all that was in use then included; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def measure(book: Book, device: torch.device, dry: bool) -> None:
    """The part ``machine``: versions and the two ceilings."""
    if book.has({"what": "ceilings"}):
        return
    megabytes, size = (1, 128) if dry else (2048, 8192)
    source = torch.randn(megabytes << 18, device=device)
    target = torch.empty_like(source)
    copy = times(lambda: target.copy_(source), device)
    kind = torch.float32 if dry else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    product = times(lambda: torch.mm(a, b, out=out), device)
    book.write(
        {"what": "ceilings"},
        bandwidth=2 * source.nbytes / median(copy),
        product=2 * size**3 / median(product),
        copied_bytes=source.nbytes,
        product_size=size,
        repeats=[len(copy), len(product)],
        spread=[[min(copy), max(copy)], [min(product), max(product)]],
        **versions(device),
    )


def versions(device: torch.device) -> dict[str, Any]:
    """Of what the figures depend on."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    if device.type == "cuda":
        what = torch.cuda.get_device_properties(device)
        found |= {
            "cuda": torch.version.cuda,
            "triton": version("triton"),
            "memory": what.total_memory,
            "multiprocessors": what.multi_processor_count,
        }
    return found


def ceilings(book: Book) -> Ceilings:
    """The ceilings recorded for this device, here or in an earlier run.

    Raises:
        LookupError: there are none.
    """
    for record in latest((*book.earlier, book.path.parent), "machine"):
        if record["key"] == {"what": "ceilings"} and record["device"] == book.device:
            return Ceilings(record["bandwidth"], record["product"])
    raise LookupError(f"the ceilings of {book.device} are not measured; run the part 'machine' first")
