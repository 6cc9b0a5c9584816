"""Conversations: what a caller gives, checked and brought into one form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import RequestError

_EXPECTED = "a conversation is a list of {'role': text, 'content': text}"
_CALLS = "tool_calls are a list of {'function': {'name': text, 'arguments': a JSON object}}"


def check(messages: Any) -> list[dict[str, Any]]:
    """The messages of a conversation, with contents as text.

    A content may be given in parts, ``[{"type": "text", "text": ...}, ...]``; they are joined by newlines. A message
    with ``tool_calls`` needs none; arguments that are given as text become the object that they spell, as templates
    expect.

    Raises:
        RequestError: not a list of messages with role and content, a part that is no text, a call that cannot be read,
            not valid Unicode.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise RequestError(f"{_EXPECTED}, got {messages!r:.80}")
    return [_message(message) for message in messages]


def continued(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message is the assistant's: it is then continued, not answered."""
    return bool(messages) and messages[-1]["role"] == "assistant"


def check_text(text: str) -> None:
    """Refuse what cannot be encoded.

    Raises:
        RequestError: half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"not valid Unicode: {error}") from None


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"{_EXPECTED}, got {message!r:.200} in it")
    if not message.get("tool_calls"):  # absent, or as clients write that there are none
        message = {key: value for key, value in message.items() if key != "tool_calls"}
    else:
        message = {"content": "", **message, "tool_calls": _calls(message["tool_calls"])}
        message["content"] = message["content"] or ""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = "\n".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{_EXPECTED}, got {message!r:.200} in it")
    check_text(message["role"])
    check_text(content)
    return {**message, "content": content}


def _calls(calls: Any) -> list[dict[str, Any]]:
    """The calls of a message, their arguments as objects."""
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise RequestError(f"{_CALLS}, got {calls!r:.80}")
    made = []
    for call in calls:
        own = call.get("function") if isinstance(call, Mapping) else None
        arguments = own.get("arguments", {}) if isinstance(own, Mapping) else None
        try:
            arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        except ValueError:
            arguments = None
        if not isinstance(own, Mapping) or not isinstance(own.get("name"), str) or not isinstance(arguments, Mapping):
            raise RequestError(f"{_CALLS}, got {call!r:.200} in it")
        made.append({**call, "function": {**own, "arguments": dict(arguments)}})
    try:
        check_text(json.dumps(made, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise RequestError(f"{_CALLS}: {error}") from None
    return made


def _part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else None
    raise RequestError(
        "a content in parts is a list of {'type': 'text', 'text': text}, got "
        + (f"a part of type {kind!r}" if isinstance(kind, str) and kind != "text" else f"{part!r:.80}")
    )
