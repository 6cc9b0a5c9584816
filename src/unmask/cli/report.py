"""``unmask report``: a page, pictures and tables from results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import RequestError
from . import options as o
from .outputs import check_writable


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Files that `unmask bench` has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("runs/report"),
    baseline: Annotated[
        str, typer.Option(metavar="POLICY|CACHE", help="What others are compared with; - for nothing.")
    ] = "vanilla|none",
    speed: Annotated[str, typer.Option(help="Of the Pareto picture: rate, cpu_rate or tpf.")] = "rate",
) -> None:
    """Turn results into one self-contained page (index.html), PNG pictures, Markdown tables and JSON.

    Pictures: accuracy against speed with the Pareto front; the sweep over SlowFast's thresholds, speed over gen_length
    where the results have several.
    """
    from ..measure.figures import SPEEDS
    from ..measure.report import write

    if speed not in SPEEDS:
        raise RequestError(f"unknown --speed {speed!r}; accepted: {', '.join(SPEEDS)}")
    check_writable(str(output / "index.html"), make=True)
    for path in write(runs, output, o.baseline(baseline), speed):
        print(path)
