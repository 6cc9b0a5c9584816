"""What the benchmarks share: problems, configurations, intervals, and a description of the machine."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import unmask
from unmask.tasks import FAMILIES, Problem, problems

# What keeps the shipped model's accuracy; chosen on the valid split.
SLOWFAST, DLLM = "slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)", "dllm(kp=2,kr=1)"


@dataclass(frozen=True)
class Config:
    """One way to decode; on the command line ``label=policy|cache``, and ``|full`` behind it for no early stop."""

    label: str
    policy: str
    cache: str
    eos_stop: bool = True

    @staticmethod
    def parse(text: str) -> Config:
        """Read the command-line form."""
        label, _, rest = text.partition("=")
        parts = rest.split("|")
        if len(parts) not in (2, 3) or parts[2:] not in ([], ["full"]):
            raise SystemExit(f"expected label=policy|cache or label=policy|cache|full, got {text!r}")
        return Config(label, parts[0], parts[1], eos_stop=len(parts) == 2)


@dataclass(frozen=True)
class Case:
    """One problem with its family."""

    family: str
    problem: Problem

    def correct(self, text: str) -> bool:
        """Whether a program accepts the answer."""
        return FAMILIES[self.family].check(self.problem, text)


def cases(families: list[str], split: str, n: int, seed: int) -> list[Case]:
    """``n`` problems of each family."""
    return [Case(name, p) for name in families or list(FAMILIES) for p in problems(name, split, n, seed)]


def environment(model: unmask.Model) -> dict[str, Any]:
    """Device, dtype, versions and the command, for the head of every result."""
    network = model.denoiser.network
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": _device_name(network.device),
        "threads": torch.get_num_threads(),
        "dtype": str(network.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "unmask": unmask.__version__,
        "commit": commit.stdout.strip(),
        "command": " ".join(["python", *sys.argv]),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON line and flush it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
