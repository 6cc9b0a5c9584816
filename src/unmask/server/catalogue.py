"""What policies and caches there are, with JSON schemas of their parameters."""

from __future__ import annotations

from typing import Any

from .. import registry
from ..core.errors import SpecError


def catalogue(kind: str, default: str) -> dict[str, Any]:
    """All of a kind ("policy" or "cache"), and the spec of requests that name none."""
    data = []
    for name in registry.table(kind):
        try:
            found = registry.lookup(kind, name)
        except SpecError:  # of another package, which cannot be imported
            continue
        about = registry.describe(found)
        data.append(
            {
                "id": name,
                "object": kind,
                "paper": None if found.paper in ("", "-") else found.paper,
                "summary": about["summary"],
                "refuses": found.refuses or None,
                "parameters": registry.json_schema(found),
            }
        )
    return {"object": "list", "default": default, "data": data}
