"""Measure how long `unmask generate` takes from a cold shell, and what of it is torch's import.

    python -m benchmarks.startup [--repeats 7] [--json]

Prints the median, the fastest and the slowest of each command, in seconds of wall time, and the processor time of the
command and its children, which a machine that is busy with other things disturbs less. The commands take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PROMPT = "Mia has 7 pens. Mia buys 3 pens. How many pens does Mia have now?"
UNMASK = "from unmask.cli import main; main()"
COMMANDS = {
    "python": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "import unmask": ["-c", "import unmask"],
    "unmask --help": ["-c", UNMASK, "--help"],
    "unmask generate": ["-c", UNMASK, "generate", PROMPT],
}


def once(arguments: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one run."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="Runs of each command; 7.")
    parser.add_argument("--json", action="store_true", help="Print JSON lines instead of a table.")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for arguments in COMMANDS.values():
        once(arguments)  # files come from the disk once
    for _ in range(given.repeats):
        for name, arguments in COMMANDS.items():
            found[name].append(once(arguments))
    if not given.json:
        print(f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} processors\n")
        print("| command | median, s | fastest | slowest | processor time, s |\n|" + " --- |" * 5)
    for name, runs in found.items():
        wall, used = sorted(w for w, _ in runs), statistics.median(u for _, u in runs)
        middle = statistics.median(wall)
        if given.json:
            record = {"command": name, "median": middle, "fastest": wall[0], "slowest": wall[-1], "processor": used}
            print(json.dumps(record | {"load": load}))
        else:
            print(f"| {name} | {middle:.2f} | {wall[0]:.2f} | {wall[-1]:.2f} | {used:.2f} |")


if __name__ == "__main__":
    main()
