"""What the keys of a line of a batch file hold; their values are checked with the request."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ..core.schema import Schema

_Ids = Annotated[list[int], Field(min_length=1)]
_Positive = Annotated[int, Field(ge=1)]


class Message(Schema):
    """One message of a conversation."""

    role: str
    content: Any


class Line(Schema):
    """All keys of batch files; which of them a line may have says its :class:`~unmask.cli.inputs.Form`."""

    prompt: str | _Ids | Annotated[list[Message], Field(min_length=1)] = Field(
        "", title="text, a list of ids or a list of messages with role and content"
    )
    text: str | _Ids = Field("", title="text or a list of ids")
    gen_length: _Positive = 1
    n: _Positive = 1
    policy: str = ""
    cache: str = ""
    chat: bool = True
    seed: int = 0
