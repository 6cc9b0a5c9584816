"""The log: one line for each request and for what happens to the server, as text or as JSON, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_MARKS = frozenset(' "=')  # what a value has to be quoted for, beside what cannot be printed


class Text(logging.Formatter):
    """``2026-11-27T05:44:22 INFO request path=/v1/completions status=200 ...``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback where there is one."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        own = "".join(f" {name}={_plain(value)}" for name, value in vars(record).get("fields", {}).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{at} {record.levelname} {record.getMessage()}{own}{trace}"


class Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        own: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname.lower()}
        own |= {"event": record.getMessage(), **vars(record).get("fields", {})}
        if record.exc_info:
            own["traceback"] = self.formatException(record.exc_info)
        return json.dumps(own)


def configure(form: str) -> None:
    """Log in a form ("text" or "json"), uvicorn's messages as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if form == "json" else Text())
    for name, level in (("unmask", logging.INFO), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


def _plain(value: Any) -> str:
    text = str(value)
    return text if text and text.isprintable() and _MARKS.isdisjoint(text) else json.dumps(text)
