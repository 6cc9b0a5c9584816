"""Conversations: what a caller gives, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import RequestError

_EXPECTED = "a conversation is a list of {'role': text, 'content': text}"


def check(messages: Any) -> list[dict[str, Any]]:
    """The messages of a conversation, with contents as text.

    A content may be given in parts, ``[{"type": "text", "text": ...}, ...]``; they are joined by newlines.

    Raises:
        RequestError: not a list of messages with role and content, a part that is no text, not valid Unicode.
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
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
        raise RequestError(f"{_EXPECTED}, got {message!r:.200} in it")
    content = message["content"]
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = "\n".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{_EXPECTED}, got {message!r:.200} in it")
    check_text(message["role"])
    check_text(content)
    return {**message, "content": content}


def _part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else None
    raise RequestError(
        "a content in parts is a list of {'type': 'text', 'text': text}, got "
        + (f"a part of type {kind!r}" if isinstance(kind, str) and kind != "text" else f"{part!r:.80}")
    )
