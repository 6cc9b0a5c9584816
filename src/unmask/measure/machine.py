"""The machine that is measured on, and this process: their names, and the most memory in use."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")


def device_name(device: torch.device) -> str:
    """What a person calls it; of a CPU with its generation, which virtual machines leave out of the name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().partition("\n\n")[0].splitlines() if info.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    generation = [f"{key.split()[-1]} {told[key]}" for key in ("cpu family", "model") if key in told]
    return f"{name} ({', '.join(generation)})" if generation else name


def reset_peak(device: torch.device) -> bool:
    """Forget the most memory in use so far; False where that is not possible, as in some containers."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR_REFS.write_text("5")  # resets VmHWM; see proc(5)
    except OSError:
        return False
    return True


def peak(device: torch.device) -> int | None:
    """Most bytes in use since :func:`reset_peak`, of the GPU or of the whole process; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def commit() -> str | None:
    """The commit of the repository that this code is in; None outside of one."""
    where = str(Path(__file__).parent)
    try:
        out = subprocess.run(["git", "-C", where, "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                             check=False)  # fmt: skip
    except OSError:
        return None
    return out.stdout.strip() or None


def command() -> str:
    """The command line of this process, as it would be typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
