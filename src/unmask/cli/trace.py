"""``unmask trace``: what can be done with the files that ``--trace`` writes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .outputs import check_distinct, check_writable, opened

trace = typer.Typer(
    help="Look at traces, the files that `unmask generate --trace` writes.",
    no_args_is_help=False,
    rich_markup_mode=None,
)


@trace.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Look at traces, the files that `unmask generate --trace` writes."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@trace.command()
def view(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl", help="A trace.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER.jsonl]", help="A second one, shown beside it in step.")
    ] = None,
    *,
    output: Annotated[str, typer.Option("--output", "-o", help="HTML file for the page; - standard output.")],
    row: Annotated[
        int | None, typer.Option(min=0, help="Only this prompt of the traces; none: all, to choose from in the page.")
    ] = None,
) -> None:
    """Write one HTML page that plays a decoding: canvas, confidences, phases, cache. It needs nothing but a browser."""
    from ..traceview.document import page
    from ..traceview.reader import read

    files = [file] if other is None else [file, other]
    if output != "-":
        for name in files:
            check_distinct({"the trace": name, "--output": output})
        check_writable(output)
    text = page([read(name, row) for name in files])
    if output == "-":
        print(text, end="")
        return
    with opened(output) as target:
        (target or sys.stdout).write(text)
