"""A plug-in of pytest: writes the outcome of each test as it ends, a JSON object a line, whichever worker ran it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    """One line for a test that has run, or that has failed or been skipped on the way."""
    path = os.environ.get("UNMASK_OUTCOMES")
    if path is None or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    if report.when != "call" and report.outcome == "passed":
        return
    said = {"said": report.longreprtext} if report.outcome == "failed" else {}
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, **said}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
