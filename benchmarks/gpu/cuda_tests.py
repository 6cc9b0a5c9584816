"""The part ``tests``: ``tests/test_cuda.py``, its outcomes recorded one by one; what has passed is not run again."""

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
    known = Path(tempfile.mkdtemp()) / "known"
    earlier = [record for folder in (*book.earlier, book.path.parent) for record in read(folder / book.path.name)]
    names = [r["key"]["test"] for r in earlier if r.get("outcome") == "passed" and r["device"] == book.device]
    known.write_text("\n".join(names), encoding="utf-8")
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
    env = os.environ | {"UNMASK_TEST_DEVICE": device.type, "OMP_NUM_THREADS": "1"}
    env |= {"UNMASK_OUTCOMES": str(book.path.resolve()), "UNMASK_OUTCOMES_KNOWN": str(known)}
    env |= {"UNMASK_OUTCOMES_DEVICE": book.device}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), env.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        code: int | None = process.wait(timeout=max(1.0, book.left - 2))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # and its workers
        process.wait()
        code = None
    book.write({"what": "ended"}, complete=code in {0, 1, 5}, code=code)
