"""``unmask speed``."""

from __future__ import annotations

import json as _json
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import RequestError
from . import options as o

if TYPE_CHECKING:
    from ..measure.speed import Figure

_Length = Annotated[list[int] | None, typer.Option(min=2, help="Positions of a canvas; repeatable; 64, 256, 1024.")]
_BatchSize = Annotated[list[int] | None, typer.Option(min=1, help="Rows; repeatable; default 1.")]
_Computed = Annotated[
    list[int] | None,
    typer.Option(min=1, help="Positions computed per row, the rest stored; repeatable; default: all."),
]
_Shape = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Random weights of llada-8b, dream-7b or a config.json, not a model."),
]


@o.takes(compile="Measure with compiled parts as well.")
def speed(
    *,
    where: o.Loading,
    shape: _Shape = None,
    length: _Length = None,
    batch_size: _BatchSize = None,
    computed: _Computed = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each thing; the median counts.")] = 15,
    peak_flops: Annotated[float | None, typer.Option(help="Operations per second that the device can do.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Bytes per second that the device can read.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Measure one forward: how long it takes, how long its matrix products take alone, where the rest goes, memory."""
    for name, value in (("--peak-flops", peak_flops), ("--bandwidth", bandwidth)):
        if value is not None and not 0 < value < math.inf:
            raise RequestError(f"{name} must be a number above 0, got {value:g}")
    if shape is not None and where.model is not None:
        raise RequestError("give --model or --shape, not both")
    import torch

    from ..api import BUNDLED_NAME
    from ..measure import run
    from ..measure import speed as measure

    wanted = measure.sizes(length or [64, 256, 1024], batch_size or [1], computed or [])
    denoiser = _open(where, shape)
    measure.reach(denoiser, max(size.length for size in wanted))
    network = denoiser.network
    about: dict[str, Any] = {
        "model": shape or where.model or BUNDLED_NAME,
        "device": run.device_name(network.device),
        "dtype": str(network.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    limits = {"peak_flops": peak_flops, "bandwidth": bandwidth}
    columns = _columns(where.compile, limits)
    if not json:
        print(", ".join(f"{value}" if key != "threads" else f"{value} threads" for key, value in about.items()) + "\n")
        print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)
    try:
        for figure in measure.measure(denoiser, wanted, repeats, where.compile):
            line = _json.dumps(about | _record(figure, limits)) if json else _row(figure, columns, limits)
            print(line, flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(130) from None


def _open(where: o.Loading, shape: str | None) -> Any:
    if shape is None:
        return replace(where, compile=False).load().denoiser  # what is measured is compiled beside it
    from ..measure.speed import random_model

    with replace(where, model=shape).begun():
        return random_model(shape, where.device, where.dtype)


def _record(f: Figure, limits: dict[str, float | None]) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    compiled = {} if f.compiled is None else {"compiled_ms": f.compiled, "compile_seconds": f.compile_seconds}
    return {
        "length": f.size.length,
        "batch_size": f.size.rows,
        "computed": f.size.computed,
        "ms": f.milliseconds,
        "quartiles": list(f.spread),
        "products_ms": f.products,
        "ratio": f.ratio,
        "parts_ms": dict(f.parts),
        "peak_bytes": f.peak_bytes,
        "operations": f.operations,
        "bytes": f.bytes,
        **compiled,
        **{f"share_of_{name}": _share(f, name, limit) for name, limit in limits.items() if limit is not None},
    }


def _share(f: Figure, name: str, limit: float) -> float:
    """Of what the device can do in the time of the forward."""
    return (f.operations if name == "peak_flops" else f.bytes) / (limit * f.milliseconds / 1e3)


def _columns(compile: bool, limits: dict[str, float | None]) -> list[str]:
    from ..measure.forward import PARTS

    shares = [name for name, limit in limits.items() if limit is not None]
    parts = [*PARTS, "other"]
    more = ["compiled, ms", "compiling, s"] if compile else []
    return ["T", "rows", "computed", "ms", "products, ms", "ratio", *parts, "peak, MB", *more, *shares]


def _row(f: Figure, columns: list[str], limits: dict[str, float | None]) -> str:
    cells = {
        "T": str(f.size.length),
        "rows": str(f.size.rows),
        "computed": str(f.size.computed),
        "ms": f"{f.milliseconds:.4g} ({f.spread[0]:.4g} - {f.spread[1]:.4g})",
        "products, ms": f"{f.products:.4g}",
        "ratio": f"{100 * f.ratio:.0f} %",
        "peak, MB": f"{f.peak_bytes / 1e6:.3g}",
        **{name: f"{100 * value / f.milliseconds:.0f} %" for name, value in f.parts.items()},
        **{name: f"{100 * _share(f, name, limit):.1f} %" for name, limit in limits.items() if limit is not None},
    }
    if f.compiled is not None and f.compile_seconds is not None:
        cells |= {"compiled, ms": f"{f.compiled:.4g}", "compiling, s": f"{f.compile_seconds:.1f}"}
    return "| " + " | ".join(cells[name] for name in columns) + " |"
