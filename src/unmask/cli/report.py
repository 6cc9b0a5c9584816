"""``unmask report``: a page, pictures and tables from results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import RequestError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Files that `unmask bench` has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("runs/report"),
    baseline: Annotated[
        str, typer.Option(metavar="POLICY|CACHE", help="What others are compared with.")
    ] = "vanilla|none",
    speed: Annotated[str, typer.Option(help="Of the Pareto picture: rate, cpu_rate or tpf.")] = "rate",
) -> None:
    """Turn results into one self-contained page (index.html), PNG pictures, Markdown tables and JSON.

    Pictures: accuracy against speed with the Pareto front; the sweep over SlowFast's thresholds, speed over gen_length
    where the results have several.
    """
    from .. import registry
    from ..measure.figures import SPEEDS
    from ..measure.report import write

    if speed not in SPEEDS:
        raise RequestError(f"unknown --speed {speed!r}; accepted: {', '.join(SPEEDS)}")
    policy, bar, cache = baseline.partition("|")
    if not bar:
        raise RequestError(f"--baseline must be POLICY|CACHE, got {baseline!r}")
    for path in write(runs, output, (str(registry.policy(policy)), str(registry.cache(cache))), speed):
        print(path)
