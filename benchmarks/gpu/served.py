"""The part ``served``: ``unmask serve`` on this device: its responses and its speed, beside the engine's alone."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import networks
import torch
from book import Book

sys.path.append(str(Path(__file__).resolve().parents[2] / "recipes" / "serve"))
START = "import sys; from unmask.cli import main; sys.exit(main())"
CONCURRENCY = 32


def measure(book: Book, device: torch.device, dry: bool) -> None:
    """Ask many kinds of requests, some of which leave; then the same requests over HTTP and by the engine, in turns."""
    import law
    import load
    import mix

    kinds, requests, most = (6, 12, 1) if dry else (40, 300, 5)
    with _server(device) as port:
        lm = networks.bundled(device, "float32")
        key = {"what": "law", "kinds": kinds, "requests": requests, "concurrency": CONCURRENCY}
        if not book.has(key) and not _skipped(book, key, 25):
            made, draw = mix.jobs(kinds, 0), random.Random(0)
            expected = mix.alone(lm, made)
            numbers = [draw.randrange(kinds) for _ in range(requests)]
            replies, wrong, _ = law.check(port, made, expected, numbers, CONCURRENCY, 0.1)
            left = sum(reply.left for reply in replies)
            shown = [
                f"{made[at][1]['unmask']}: {reply.text!r}; alone {right!r}"[:400] for at, reply, right in wrong[:5]
            ]
            book.write(key, left=left, wrong=len(wrong), as_alone=len(replies) - left - len(wrong), shown=shown)
        made, rates = mix.jobs(16 if dry else 128, 7), {"alone": list[float](), "served": list[float]()}
        key = {"what": "load", "requests": len(made), "concurrency": CONCURRENCY}
        if book.has(key) or _skipped(book, key, 15):
            return
        load.served(port, made[:16], 8)
        load.offline(lm, made[:16])
        while len(rates["served"]) < most and (book.left > 8 or not rates["served"]):
            tokens, seconds, _ = load.offline(lm, made)
            rates["alone"].append(tokens / seconds)
            tokens, seconds, *_ = load.served(port, made, CONCURRENCY)
            rates["served"].append(tokens / seconds)
        share = median(rates["served"]) / median(rates["alone"])
        book.write(key, share=share, **{f"{name}_tokens_per_second": each for name, each in rates.items()})


def _skipped(book: Book, key: dict[str, Any], needs: float) -> bool:
    """Whether less time is left than it needs; then this is recorded."""
    left = book.left
    if left < needs:
        book.write(key, skipped=f"{left:.0f} s left")
    return left < needs


@contextmanager
def _server(device: torch.device) -> Iterator[int]:
    """The port of a server of the bundled model, which ends with the block."""
    log = Path(tempfile.mkdtemp()) / "log"
    command = [sys.executable, "-c", START, "serve", "--port", "0", "--dtype", "float32"]
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--device", device.type], stderr=file)
    try:
        yield _port(process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.time() + 60
    while time.time() < end and process.poll() is None:
        if found := re.search(r"serving on http://\S+:(\d+)", log.read_text(encoding="utf-8")):
            return int(found[1])
        time.sleep(0.2)
    raise RuntimeError(f"no server: {log.read_text(encoding='utf-8')[-1500:]}")
