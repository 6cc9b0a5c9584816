"""``unmask quantize``: a model's weights in 8 or 4 bits, as a folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import RequestError
from . import options as o
from .progress import loading


def quantize(
    model: Annotated[
        str | None, typer.Argument(help="Folder, GGUF file, hub id or bundled model; none: unmask-tiny.")
    ] = None,
    *,
    output: Annotated[str, typer.Option("--output", "-o", help="New folder for the quantised model.")],
    kind: Annotated[str, typer.Option(help="int8 or int4, with +head for the head as well.")] = "int8",
    revision: o.Revision = None,
    adapter: o.Adapter = None,
) -> None:
    """Write a copy of a model whose weights are quantised; it loads like any other."""
    from ..inspection import write_quantised

    if not output:
        raise RequestError("--output is empty; expected the name of a new folder")
    with loading(model):
        count, size, before = write_quantised(model, Path(output), kind, revision=revision, adapter=adapter)
    print(f"{output}: {count} weights, {size:,} bytes, {size / before:.2f} of bfloat16", file=sys.stderr)
