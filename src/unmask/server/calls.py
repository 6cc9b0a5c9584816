"""OpenAI's ``tools``: what a request offers, and calls out of the text of a response."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..constraints.calls import Calls
from ..processor import Processor
from ..text.calls import PLAIN
from .errors import wrong
from .schema import AllowedTools, Chat, NamedTool, Tool


@dataclass(frozen=True)
class Offer:
    """The functions that a response may call.

    Attributes:
        tools: as the chat template gets them.
        constraint: what the response may be.
        name: the one function whose arguments alone are the response; None: calls say their names.
    """

    tools: tuple[dict[str, Any], ...]
    constraint: Calls
    name: str | None = None


def offered(body: Chat, lm: Processor, model: str) -> Offer | None:
    """What a request offers; None where no function may be called.

    Raises:
        Refused: what contradicts itself or cannot be honoured; names it.
    """
    tools, mode, only = _chosen(body)
    if not tools or mode == "none":
        return None
    assert lm.text is not None
    if body.stop:
        raise wrong("stop is not supported beside tools: it would end a call in the middle", "stop")
    if mode == "auto" and not lm.text.takes_tools:
        raise wrong(
            f"the chat template of {model} does not show tools, so that it cannot choose to call one; give tool_choice "
            '"required" or a function, "none", or leave out tools',
            "tool_choice", "unsupported_value",
        )  # fmt: skip
    form = lm.text.calls or PLAIN
    meant = [tool for tool in tools if only is None or tool.function.name in only]
    forced = isinstance(body.tool_choice, NamedTool)
    name = meant[0].function.name if form is PLAIN and len(meant) == 1 and mode == "required" else None
    if name is not None:  # no template says how to write a call, and there is nothing to choose
        form = replace(form, open="", middle="", close="")
    odd = next((tool.function for tool in meant if tool.function.arguments()["type"] != "object"), None)
    if odd is not None:
        raise wrong(f"tools: {odd.name}: the parameters must be of the type object", "tools")
    functions = tuple((tool.function.name, json.dumps(tool.function.arguments())) for tool in meant)
    many = body.parallel_tool_calls is not False and not forced
    free = _free(body) if mode == "auto" else None
    if free is not None:  # a text of a given form may hold anything, so that calls are known by the beginning alone
        form = replace(form, tagged=False)
    shown = tuple(tool.model_dump(exclude_unset=True) for tool in tools)
    return Offer(shown, Calls(form, functions, many, mode == "auto", free), name)


def _chosen(body: Chat) -> tuple[Sequence[Tool], str, frozenset[str] | None]:
    """The functions, whether one is called (``none``, ``auto``, ``required``), and the names of those; None: all.

    Raises:
        Refused: names that occur twice or not at all, a choice without functions.
    """
    tools, choice = body.tools or [], body.tool_choice
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise wrong(f"tools has {twice} twice", "tools")
    mode, only = choice if isinstance(choice, str) else "auto", None
    if isinstance(choice, NamedTool):
        mode, only = "required", frozenset((choice.function.name,))
    elif isinstance(choice, AllowedTools):
        mode = choice.allowed_tools.mode
        only = frozenset(one.function.name for one in choice.allowed_tools.tools)
    missing = sorted((only or frozenset()) - set(names))
    if missing:
        raise wrong(f"tool_choice names {missing[0]}, which is not in tools", "tool_choice")
    if not tools and mode == "required":
        raise wrong("tool_choice is given without tools", "tool_choice")
    return tools, mode, only


def _free(body: Chat) -> tuple[str, str | tuple[str, ...]] | None:
    """What a response must be that calls nothing."""
    from ..engine.request import SamplingParams

    own = {name: value for name, value in body.sampling().items() if name in ("regex", "json_schema", "choices")}
    found = SamplingParams(**own).constraint
    return next(iter(found.items()), None)


class Reader:
    """Takes the text of a response apart, piece by piece: what stands in front of calls, names and arguments.

    Args:
        offer: what the response may call.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer, self.form = offer, offer.constraint.format
        self.count = 0  # calls that have begun
        self._held = ""
        self._depth, self._quoted, self._escaped = 0, False, False
        self._state = self._text if offer.constraint.text else self._open
        self._name = re.compile(re.escape(self.form.open) + "([a-zA-Z0-9_-]{1,64})" + re.escape(self.form.middle))

    def push(self, text: str) -> dict[str, Any]:
        """The delta that more text makes: ``content``, ``tool_calls``, both or nothing."""
        self._held += text
        delta: dict[str, Any] = {}
        while self._state(delta):
            pass
        return delta

    def finish(self) -> dict[str, Any]:
        """The delta at the end: text that might have been the beginning of a call."""
        rest, self._held = self._held, ""
        return {"content": rest} if rest and self._state in (self._text, self._only) else {}

    # each takes what it can of the held text, and returns whether another one is to go on

    def _text(self, delta: dict[str, Any]) -> bool:
        """Text, in which a call may begin."""
        mark, held = self.form.mark, self._held
        at = held.find(mark)
        if not self.form.tagged and at != 0:
            if len(held) >= len(mark) or not mark.startswith(held):
                self._state = self._only
                return True
            return False
        if at >= 0:
            _say(delta, held[:at].rstrip())
            self._held, self._state = held[at:], self._open
            return True
        keep = next(n for n in range(min(len(mark) - 1, len(held)), -1, -1) if held.endswith(mark[:n]))
        front = held[: len(held) - keep].rstrip()
        _say(delta, front)
        self._held = held[len(front) :]
        return False

    def _only(self, delta: dict[str, Any]) -> bool:
        """Text to the end."""
        _say(delta, self._held)
        self._held = ""
        return False

    def _open(self, delta: dict[str, Any]) -> bool:
        """The beginning of a call up to its arguments."""
        name = self.offer.name
        if name is None:
            self._held = self._held.lstrip()
            found = self._name.match(self._held)
            if found is None:
                return False
            name, self._held = found[1], self._held[found.end() :]
        elif not self._held:
            return False
        own = {"index": self.count, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
        delta.setdefault("tool_calls", []).append({**own, "function": {"name": name, "arguments": ""}})
        self.count += 1
        self._state = self._arguments
        return True

    def _arguments(self, delta: dict[str, Any]) -> bool:
        """A JSON object, to its last brace."""
        end = None
        for at, c in enumerate(self._held):
            if self._quoted:
                self._quoted = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
            elif c == '"':
                self._quoted = True
            elif c in "{}":
                self._depth += 1 if c == "{" else -1
                if self._depth == 0:
                    end = at + 1
                    break
        own, self._held = self._held[:end], "" if end is None else self._held[end:]
        several = delta.setdefault("tool_calls", [])
        if several and several[-1]["index"] == self.count - 1:
            several[-1]["function"]["arguments"] += own
        elif own:
            several.append({"index": self.count - 1, "function": {"arguments": own}})
        if not several:
            del delta["tool_calls"]
        self._state = self._arguments if end is None else self._close
        return end is not None

    def _close(self, delta: dict[str, Any]) -> bool:
        """What stands behind the arguments."""
        if self._held.startswith(self.form.close) and self.offer.name is None:
            self._held, self._state = self._held[len(self.form.close) :], self._open
            return True
        return False


def _say(delta: dict[str, Any], text: str) -> None:
    if text:
        delta["content"] = delta.get("content", "") + text


def message(offer: Offer, text: str) -> dict[str, Any]:
    """``content`` and ``tool_calls`` of a whole response."""
    reader = Reader(offer)
    parts: list[Mapping[str, Any]] = [reader.push(text), reader.finish()]
    content = "".join(part.get("content", "") for part in parts)
    calls = [{key: value for key, value in call.items() if key != "index"} for part in parts
             for call in part.get("tool_calls", ())]  # fmt: skip
    return {"content": content or None, **({"tool_calls": calls} if calls else {})}
