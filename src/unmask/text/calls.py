"""How a chat template writes calls of functions, found out by having it write some."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import RequestError

_NAMES = ("qvfirstq", "qvsecondq")  # no template has these words
_KEY, _VALUE, _SAID = "qvkeyq", "qvvalueq", "qvsaidq"
_ARGUMENTS = re.compile(rf'\{{\s*"{_KEY}"\s*:\s*"{_VALUE}"\s*\}}')
Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True)
class CallFormat:
    """The text of a call: ``open``, the function's name, ``middle``, its arguments as a JSON object, ``close``.

    Attributes:
        open, middle, close: parts of a call.
        between: what stands between two calls; None: a response has one at most.
        mark: the beginning of ``open`` by which a call is known.
        tagged: the mark is a control token, so that no text is taken for it: a call may follow a text. Otherwise a
            response is a text or a call, as its beginning says.
    """

    open: str = '{"name": "'
    middle: str = '", "arguments": '
    close: str = "}"
    between: str | None = None
    tagged: bool = False

    @property
    def mark(self) -> str:
        """The beginning of a call."""
        return self.open.split()[0]


PLAIN = CallFormat()  # where a template writes none


def spelled(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose calls are text, as the model has written them; for templates that write none."""
    own = {key: value for key, value in message.items() if key != "tool_calls"}
    calls = [call["function"] for call in message.get("tool_calls", ())]
    texts = [
        f"{PLAIN.open}{call['name']}{PLAIN.middle}{json.dumps(call['arguments'], ensure_ascii=False)}{PLAIN.close}"
        for call in calls
    ]
    return {**own, "content": "\n".join([own["content"]] * bool(own["content"]) + texts)}


def takes_tools(render: Render) -> bool:
    """Whether a template shows the functions that it is given."""
    try:
        return _NAMES[0] in render([_message("user", "a")], [_tool(_NAMES[0])])
    except RequestError:
        return False


def call_format(render: Render, shown: Collection[str], hidden: Collection[str]) -> CallFormat | None:
    """The format of a template's calls; None where it writes none, not as a name with a JSON object behind it, or with
    what readable text leaves out.

    Args:
        render: renders messages and functions.
        shown, hidden: names of control tokens that readable text shows, and of those that it leaves out.
    """
    try:
        text, one, two = (_end(render, count) for count in (0, 1, 2))
    except RequestError:
        return None
    if text is None or one is None or not one.endswith(text):
        return None
    found = _parts(one[: len(one) - len(text)], _NAMES[0])
    if found is None:
        return None
    opening, middle, close = found
    opening = opening.lstrip()
    if not opening or any(name in "".join(found) for name in hidden):
        return None
    mark = opening.split()[0]
    made = CallFormat(opening, middle, close, None, mark in shown and mark.count(mark[0]) == 1)
    call = f"{opening}{_NAMES[1]}{middle}"
    if two is not None and two.endswith(text) and (at := two.find(call)) > 0:
        front = two[:at]
        between = front[front.rindex(close) + len(close) :] if close and close in front else None
        if between is not None and not between.strip():
            return CallFormat(opening, middle, close, between, made.tagged)
    return made


def _end(render: Render, calls: int) -> str | None:
    """What a template writes behind the text of an assistant's message with so many calls."""
    made = [{"id": f"call0000{at}", "type": "function", "function": {"name": _NAMES[at], "arguments": {_KEY: _VALUE}}}
            for at in range(calls)]  # fmt: skip
    said = _message("assistant", _SAID) | ({"tool_calls": made} if made else {})
    whole = render([_message("user", "a"), said, _message("user", "a")], [_tool(name) for name in _NAMES])
    _, found, rest = whole.rpartition(_SAID)
    return rest if found else None


def _parts(call: str, name: str) -> tuple[str, str, str] | None:
    """The parts of a call around its name and its arguments."""
    at, arguments = call.find(name), _ARGUMENTS.search(call)
    if at < 0 or arguments is None or arguments.start() < at:
        return None
    return call[:at], call[at + len(name) : arguments.start()], call[arguments.end() :]


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _tool(name: str) -> dict[str, Any]:
    own = {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": own}}
