"""The part ``tests``: ``tests/test_cuda.py``, its outcomes recorded one by one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from book import Book, read

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORKERS = max(1, min(14, (os.cpu_count() or 2) - 2))  # each is a process with a context of its own on the device


def measure(book: Book, device: torch.device, dry: bool) -> None:
    """Run the tests until the deadline; failures are recorded with the end of what they say."""
    if book.has({"what": "summary"}):
        return
    raw = Path(tempfile.mkdtemp()) / "outcomes"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(ROOT / "tests" / "test_cuda.py"),
        "-q",
        "--tb=short",
        "-p",
        "outcomes",
    ]
    command += ["-p", "no:cacheprovider", "-o", "filterwarnings=default", "--disable-warnings", "--maxfail=200"]
    command += ["-n0", "-k", "worth"] if dry else ["-n", str(WORKERS), "--dist", "load"]
    env = os.environ | {"UNMASK_OUTCOMES": str(raw), "UNMASK_TEST_DEVICE": device.type, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), env.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        code: int | None = process.wait(timeout=max(1.0, book.left - 2))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # and its workers
        process.wait()
        code = None
    counts: dict[str, int] = {}
    by_test: dict[str, dict[str, int]] = {}
    for outcome in read(raw):
        kind = outcome["outcome"]
        counts[kind] = counts.get(kind, 0) + 1
        mine = by_test.setdefault(outcome["test"].split("::")[-1].split("[")[0], {})
        mine[kind] = mine.get(kind, 0) + 1
        if kind == "failed":
            book.write({"test": outcome["test"]}, outcome=kind, said=outcome.get("said", "")[-1500:])
    book.write({"what": "summary"}, counts=counts, tests=by_test, complete=code is not None, code=code)
