"""A plug-in of pytest: writes the outcome of each test as it ends, one record a line, whichever worker ran it.

Tests run in a random order, always the same: where time is short, what was run is a sample of all.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from book import add


def pytest_runtest_logreport(report: Any) -> None:
    """One record for a test that has run, or that has failed or been skipped on the way."""
    if os.environ.get("PYTEST_XDIST_WORKER") or (report.when != "call" and report.outcome == "passed"):
        return
    found = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.outcome == "failed":
        found["said"] = report.longreprtext[-1500:]
    path, device = Path(os.environ["UNMASK_OUTCOMES"]), os.environ["UNMASK_OUTCOMES_DEVICE"]
    add(path, {"test": _name(report.nodeid)}, device, **found)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Those that had passed before this run began are left out."""
    known = set(Path(os.environ["UNMASK_OUTCOMES_KNOWN"]).read_text(encoding="utf-8").splitlines())
    items[:] = [item for item in items if _name(item.nodeid) not in known]
    random.Random("order").shuffle(items)


def _name(nodeid: str) -> str:
    return nodeid.partition("::")[2]
