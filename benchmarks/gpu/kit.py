"""Measure ``unmask`` on a GPU: one command, parts that each write their records as they go.

Without ``--part`` it runs the parts one after the other, each in a process of its own, so that one that fails or
takes too long costs no other; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GRACE = 3.0  # seconds between a part's deadline and its end by force


@dataclass(frozen=True)
class Part:
    """``weight``: its share of the time that is left when its turn comes; ``most`` seconds; ``file``: the part whose
    file its records are in, if not its own.
    """

    weight: float
    most: float
    what: str
    file: str | None = None


PARTS = {
    "machine": Part(2, 40, "versions, and the two ceilings: copying memory, a large matrix product"),
    "passes": Part(7, 100, "forward passes at the shape of LLaDA-8B, random weights"),
    "pieces": Part(2, 25, "the pieces of the layers, each alone"),
    "replay": Part(17, 250, "decodings of the bundled model replayed at that shape, beside an autoregressive model"),
    "tests": Part(8, 500, "tests/test_cuda.py"),
    "host": Part(3, 40, "time outside the network, kernels and waits per step"),
    "answers": Part(3, 60, "answers of the bundled model on this device beside those on the CPU"),
    "dream": Part(4, 60, "forward passes at the shape of Dream-7B", "passes"),
    "quantised": Part(4, 130, "forward passes at the shape of LLaDA-8B, weights in 8 and 4 bits", "passes"),
    "served": Part(
        3, 90, "the bundled model served by HTTP: as alone, and how fast beside the engine alone", "answers"
    ),
}


def main() -> int:
    """Run the parts, or one."""
    args = _arguments()
    if args.part:
        return _one(args)
    return _all(args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-out")), help="folder for records")
    parser.add_argument("--after", type=Path, action="append", default=[], help="records of earlier runs: go on there")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}, in this order")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, in less than a minute")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _all(args: argparse.Namespace) -> int:
    end, failed = time.time() + args.budget, 0
    chosen = [name for name in args.parts.split(",") if name]
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        raise SystemExit(f"--parts has {unknown[0]!r}; known: {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(chosen):
        left = end - time.time()
        weights = sum(PARTS[later].weight for later in chosen[place:])
        share = left if args.dry_run else min(PARTS[name].most, left * PARTS[name].weight / weights)
        print(f"== {name}: {PARTS[name].what}; {share:.0f} of {left:.0f} s left", flush=True)
        failed += _spawn(args, name, time.time() + share) != 0
    _tell(args)
    print(f"== done, {failed} parts failed, {end - time.time():.0f} s left", flush=True)
    return 1 if failed else 0


def _tell(args: argparse.Namespace) -> None:
    """The page of what is recorded, for whoever sees the terminal alone."""
    from page import Records, page

    folders = [*args.after, args.out]
    if any((folder / "machine.jsonl").is_file() for folder in folders):
        print(page(Records(folders))[-9000:], flush=True)


def _spawn(args: argparse.Namespace, name: str, deadline: float) -> int:
    """Run a part; what it prints goes to the terminal and to ``run.log``."""
    command = [sys.executable, str(HERE / "kit.py"), "--part", name, "--out", str(args.out)]
    command += ["--deadline", str(deadline), *(["--dry-run"] if args.dry_run else [])]
    for folder in args.after:
        command += ["--after", str(folder)]
    paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    began, log = time.time(), args.out / "run.log"
    with log.open("a", encoding="utf-8") as file:
        print(f"== {name}", file=file, flush=True)
        at = file.tell()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            code = process.wait(timeout=max(1.0, deadline + GRACE - time.time()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            code = process.wait()
            print(f"-- {name}: stopped at its deadline", file=file, flush=True)
    said = log.read_text(encoding="utf-8", errors="replace").encode()[at:].decode(errors="replace")
    print(said[-1500:], f"-- {name}: exit {code}, {time.time() - began:.0f} s", sep="", flush=True)
    return code


def _one(args: argparse.Namespace) -> int:
    import device as devices
    from book import Book

    device = devices.pick(args.dry_run)
    book = Book(
        args.out / f"{PARTS[args.part].file or args.part}.jsonl", devices.name(device), tuple(args.after), args.deadline
    )
    began = time.time()
    _work(args.part)(book, device, args.dry_run)
    book.write({"what": "part", "part": args.part, "began": round(began)}, took=time.time() - began)
    return 0


def _work(part: str) -> Callable[[Any, Any, bool], None]:
    """What a part does, imported now."""
    if part == "machine":
        from device import measure

        return measure
    if part in {"passes", "dream", "quantised"}:
        import passes

        if part == "quantised":
            return passes.quantised
        shape = "llada-8b" if part == "passes" else "dream-7b"
        return lambda book, device, dry: passes.measure(book, device, shape, dry)
    module = __import__("cuda_tests" if part == "tests" else part)
    work: Callable[[Any, Any, bool], None] = module.measure
    return work


if __name__ == "__main__":
    sys.exit(main())
