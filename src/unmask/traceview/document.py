"""One self-contained HTML page of one trace, or of two side by side."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from ..core.errors import RequestError
from .reader import Forward, Row, Trace

_UNKNOWN = 255  # in the maps: not asked
_MOST = 1 << 28  # bytes of maps in a page; browsers hold no text much longer


def page(traces: Sequence[Trace]) -> str:
    """The page. Nothing in it is fetched from anywhere, and nothing but its own script runs.

    Raises:
        RequestError: too large for a browser.
    """
    size = sum(len(row.forwards) * (row.length + row.gen_length) for trace in traces for row in trace.rows.values())
    if size > _MOST:
        raise RequestError(
            f"{traces[0].name}: a page of all rows would have {size >> 20} MB of maps, more than the {_MOST >> 20} "
            "that browsers can open; choose one row with --row"
        )
    style, body = _part("page.css"), _part("page.html")
    script = "".join(_part(name) for name in ("replay.js", "maps.js", "page.js"))
    data = json.dumps({"traces": [_trace(t) for t in traces]}, separators=(",", ":"))
    for sign in "<>&":  # no text of a trace can end the element, whatever it is
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="dark light">\n<link rel="icon" href="data:,">\n'
        f"<title>unmask trace</title>\n<style>{style}</style>\n</head>\n<body>\n{body}"
        f'<script id="data" type="application/json">{data}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _trace(trace: Trace) -> dict[str, Any]:
    return {
        "name": trace.name,
        "policy": trace.policy,
        "cache": trace.cache,
        "model": trace.model,
        "mask": trace.mask,
        "eos": trace.eos,
        "layers": trace.layers,
        "truncated": trace.truncated,
        "pieces": {i: trace.pieces[i] for i in sorted(_ids(trace)) if i in trace.pieces},
        "rows": [_row(trace, row) for row in trace.rows.values()],
    }


def _ids(trace: Trace) -> set[int]:
    """Those that the rows show."""
    given = (i for row in trace.rows.values() for i in (*row.prompt, *row.fixed.values()))
    return {*given, *(i for row in trace.rows.values() for f in row.forwards for _, i, _ in f.committed)}


def _row(trace: Trace, row: Row) -> dict[str, Any]:
    return {
        "row": row.row,
        "prompt": row.prompt,
        "length": row.length,
        "begin": row.begin,
        "fixed": sorted(row.fixed.items()),
        "finished": row.finished,
        "forwards": [_forward(row, f) for f in row.forwards],
        "confidence": _confidence(row),
        "computed": _computed(trace, row),
    }


def _forward(row: Row, forward: Forward) -> dict[str, Any]:
    inside = [(first, min(last, row.length)) for first, last in forward.window]
    probes = [(max(first, row.length), last, n) for first, last, n in forward.computed or () if last > row.length]
    return {
        "index": forward.index,
        "window": inside,
        "committed": forward.committed,
        "remasked": forward.remasked,
        "work": forward.work,
        "probes": sum(last - first for first, last, _ in probes),
        "notes": forward.notes,
        "seconds": forward.seconds,
    } | ({} if forward.length is None else {"size": forward.length})


def _confidence(row: Row) -> str | None:
    """Base64 of bytes ``[forwards, gen_length]``: confidence times 254, 255 where not asked."""
    if any(f.confidence is None for f in row.forwards):
        return None
    lead, lines = len(row.prompt), bytearray()
    for forward in row.forwards:
        line = bytearray([_UNKNOWN]) * row.gen_length
        for first, values in forward.confidence or ():
            line[first - lead : first - lead + len(values)] = bytes(round(254 * c) for c in values)
        lines += line
    return base64.b64encode(lines).decode()


def _computed(trace: Trace, row: Row) -> str | None:
    """Base64 of bytes ``[forwards, positions]``: share of the layers that computed a position, times 254."""
    if not trace.layers or any(f.computed is None for f in row.forwards):
        return None
    most = max([trace.layers, *(n for f in row.forwards for _, _, n in f.computed or ())])  # twice that under guidance
    lines = bytearray()
    for forward in row.forwards:
        line = bytearray(row.length)
        for first, last, layers in forward.computed or ():
            stop = min(last, row.length)
            line[first:stop] = bytes([max(1, round(254 * layers / most)) if layers else 0]) * max(stop - first, 0)
        lines += line
    return base64.b64encode(lines).decode()
