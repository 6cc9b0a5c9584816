"""``unmask inspect``, ``unmask policies``, ``unmask caches`` and ``unmask drafters``."""

from __future__ import annotations

import json as _json
import shutil
import sys
import textwrap
from typing import Annotated, Any

import typer

from ..core.errors import SpecError
from . import options as o

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def inspect(
    model: Annotated[
        str | None, typer.Argument(help="Folder, GGUF file, hub id or bundled model; none: unmask-tiny.")
    ] = None,
    revision: o.Revision = None,
    adapter: o.Adapter = None,
    block_length: o.BlockLength = None,
    quantize: o.Quantize = "auto",
    json: _Json = False,
) -> None:
    """Print what a checkpoint is: family, attention, sizes, ids, tokenizer, files. Only headers of weights are read."""
    from ..inspection import inspect as look

    report = look(model, revision=revision, adapter=adapter, block_length=block_length, quantize=quantize)
    if json:
        print(_json.dumps(report, ensure_ascii=False, indent=2))
        return
    width = max(map(len, report))
    for key, value in report.items():
        print(f"{key.replace('_', ' '):<{width}}  {_words(key, value)}")


def policies(json: _Json = False) -> None:
    """List the policies: which masks to fill in each forward."""
    _list("policy", json)


def caches(json: _Json = False) -> None:
    """List the caches: which positions to compute in each forward."""
    _list("cache", json)


def drafters(json: _Json = False) -> None:
    """List the drafters of `unmask speculate`: what proposes tokens for a causal model to verify."""
    _list("drafter", json)


def _words(key: str, value: Any) -> str:
    """A value for a person."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if key in ("parameters", "active"):
        return f"{value:,} ({_short(value)})"
    if key == "bytes":
        return f"{value:,} ({_short(value, 'kB', 'MB', 'GB')})"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" if isinstance(v, str) else f"{k} {v:,}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(number: int, *units: str) -> str:
    """``8.02 B``; ``units`` for thousands, millions and milliards (default k, M, B)."""
    for power, unit in zip((10**9, 10**6, 10**3), (units or ("k", "M", "B"))[::-1], strict=True):
        if number >= power:
            return f"{number / power:.2f} {unit}"
    return str(number)


def _list(kind: str, as_json: bool) -> None:
    from .. import registry

    known = {}
    for name in registry.table(kind):
        try:
            known[name] = registry.describe(registry.lookup(kind, name))
        except SpecError as error:  # of another package; the rest can be shown
            print(f"warning: {error}", file=sys.stderr)
    if as_json:
        print(_json.dumps(known, ensure_ascii=False, indent=2))
        return
    width = min(shutil.get_terminal_size().columns, 120)
    for name, about in known.items():
        print(f"{name}  ({about['paper']})" if about["paper"] not in ("", "-") else name)
        print(_wrapped(about["summary"], width, 2))
        if about["refuses"]:
            print(_wrapped(f"Refuses {about['refuses']}.", width, 2))
        for p in about["parameters"]:
            presets = [f"{_plain(value)} ({preset})" for preset, value in p.get("presets", {}).items()]
            default = ", ".join(presets) or ("required" if p["required"] else _plain(p["default"]))
            print(f"    {p['name']} = {default}; {p['accepted']}")
            print(_wrapped(p["doc"], width, 8))
        print()


def _wrapped(text: str, width: int, indent: int) -> str:
    return textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _plain(value: Any) -> str:
    """A default as the spec grammar writes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
