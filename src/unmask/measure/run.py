"""Settings x problems, interleaved, each batch one line of results; what is in the file is not run again."""

from __future__ import annotations

import hashlib
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from . import ledger
from .problems import Source

if TYPE_CHECKING:
    from ..api import Model


@dataclass(frozen=True)
class Setting:
    """One way to decode.

    Attributes:
        policy, cache: specs, as their objects print them.
        gen_length: response length in tokens.
        batch_size: prompts decoded together; they start together and each leaves when it is done.
        eos_stop: whether a response ends early at its end of text.
        temperature: of sampling.
    """

    policy: str
    cache: str
    gen_length: int
    batch_size: int = 1
    eos_stop: bool = True
    temperature: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Problems ``first`` to ``first + n`` of a source, to be decoded together with one setting."""

    setting: Setting
    source: Source
    first: int
    n: int

    def key(self, split: str, seed: int) -> dict[str, Any]:
        """What identifies the batch in the results of one environment."""
        return {
            **asdict(self.setting),
            "task": self.source.name,
            "split": split,
            "seed": seed,
            "first": self.first,
            "n": self.n,
        }


def environment(lm: Model, name: str) -> dict[str, Any]:
    """What figures depend on beside the setting: model, device, dtype, threads, versions."""
    network = lm.denoiser.network
    return {
        "model": name,
        "device": device_name(network.device),
        "dtype": str(network.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "unmask": __version__,
    }


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def order(settings: Sequence[Setting], sources: Sequence[Source], seed: int) -> Iterator[Batch]:
    """All batches: a few problems of each source with every setting in a random order, then the next problems."""
    rng = random.Random(seed)
    stride = max(s.batch_size for s in settings)
    for start in range(0, max(len(s.items) for s in sources), stride):
        for one in sources:
            stop = min(start + stride, len(one.items))
            for setting in rng.sample(settings, len(settings)):
                for first in range(start, stop, setting.batch_size):
                    yield Batch(setting, one, first, min(setting.batch_size, stop - first))


def run(
    lm: Model,
    name: str,
    batches: Sequence[Batch],
    path: Path,
    split: str,
    seed: int,
    done: Callable[[int, int, dict[str, Any] | None], None] = lambda made, of, row: None,
) -> None:
    """Decode what the file does not hold yet; every batch is on the disk before the next begins."""
    here = environment(lm, name)
    ident = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:12]
    known, have = False, set()
    for row in ledger.read(path):
        known = known or (row["kind"] == "run" and row["id"] == ident)
        if row["kind"] == "batch" and row["run"] == ident:
            have.add(json.dumps(row["key"], sort_keys=True))
    missing = [b for b in batches if json.dumps(b.key(split, seed), sort_keys=True) not in have]
    if missing and not known:
        ledger.append(path, {"kind": "run", "id": ident, **here, "commit": commit(), "command": command()})
    warm: set[Setting] = set()
    for index, batch in enumerate(missing):
        done(index, len(missing), None)
        if batch.setting not in warm:
            decode(lm, Batch(batch.setting, batch.source, batch.first, 1), seed)
            warm.add(batch.setting)
        row = {"kind": "batch", "run": ident, "key": batch.key(split, seed), **decode(lm, batch, seed)}
        ledger.append(path, row)
        done(index + 1, len(missing), row)


def decode(lm: Model, batch: Batch, seed: int) -> dict[str, Any]:
    """Decode one batch: a list with one value per problem for what a problem has, a number for what the batch has."""
    setting = batch.setting
    items = batch.source.items[batch.first : batch.first + batch.n]
    reset_peak()
    began, cpu = time.perf_counter(), time.process_time()
    requests = lm.requests([i.prompt for i in items], setting.gen_length, temperature=setting.temperature, seed=seed,
                           eos_stop=setting.eos_stop)  # fmt: skip
    results, first, model = {}, {}, 0.0
    for state, step in lm.run(requests, setting.policy, setting.cache, setting.batch_size):
        model += step.model_seconds
        now = time.perf_counter() - began
        at = state.canvas.prompt
        write = step.update.write.gather(1, at[:, None])[:, 0].tolist()
        first.update({row: now for row, own in zip(step.row.tolist(), write, strict=True) if own})
        if step.finished:
            results.update(lm.results(state))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    stats = [results[r.row].stats for r in requests]
    return {
        "correct": [int(i.check(results[r.row].text)) for i, r in zip(items, requests, strict=True)],
        "digest": [hashlib.sha256(results[r.row].text.encode()).hexdigest()[:16] for r in requests],
        "nfe": [s.nfe for s in stats],
        "tokens": [s.tokens for s in stats],
        "positions": [round(s.positions, 1) for s in stats],
        "first_token": [round(first[r.row], 4) for r in requests],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "model_seconds": model,
        "peak_bytes": peak(lm.denoiser.network.device),
    }


def reset_peak() -> None:
    """Begin a new measurement of the most memory in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int | None:
    """Most bytes in use since :func:`reset_peak`: of the GPU, or of the process; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def commit() -> str | None:
    """The commit that this code is at; None outside a repository."""
    try:
        out = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return out.stdout.strip() or None


def command() -> str:
    """The command line of this process."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
