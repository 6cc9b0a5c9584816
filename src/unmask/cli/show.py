"""``unmask inspect``, ``unmask policies``, ``unmask caches`` and ``unmask drafters``."""

from __future__ import annotations

import dataclasses
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
    model: Annotated[str | None, typer.Argument(help="Folder or hub id; none: the bundled model.")] = None,
    revision: o.Revision = None,
    adapter: o.Adapter = None,
    json: _Json = False,
) -> None:
    """Print what a checkpoint is: family, sizes, ids, tokenizer, files. Nothing of the weights is read but headers."""
    from ..inspection import inspect as look

    report = look(model, revision=revision, adapter=adapter)
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
    if key == "parameters":
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
            known[name] = describe(registry.lookup(kind, name))
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


def describe(cls: type[Any]) -> dict[str, Any]:
    """What there is to know of a policy, cache or drafter: paper, summary (its docstring), refusals, parameters."""
    summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
    return {
        "paper": cls.paper,
        "summary": summary,
        "refuses": cls.refuses,
        "parameters": [_parameter(cls, f) for f in dataclasses.fields(cls) if not f.metadata.get("hidden")],
        "hidden": [_parameter(cls, f) for f in dataclasses.fields(cls) if f.metadata.get("hidden")],
    }


def _parameter(cls: type[Any], field: dataclasses.Field[Any]) -> dict[str, Any]:
    from ..core.config import accepted
    from ..registry import parts

    nested = field.name in parts(cls)
    default = field.default if nested else getattr(cls(), field.name)
    about = {
        "name": field.name,
        "required": nested and default is None,
        "default": str(default) if nested and default is not None else default,
        "accepted": accepted(cls, field.name),
        "doc": field.metadata.get("doc", ""),
    }
    presets = next((f.metadata["choices"] for f in dataclasses.fields(cls) if f.name == "preset"), ())
    values = {name: getattr(cls(preset=name), field.name) for name in presets if field.name != "preset"}
    return about | ({"presets": values} if len(set(values.values())) > 1 else {})


def _plain(value: Any) -> str:
    """A default as the spec grammar writes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
