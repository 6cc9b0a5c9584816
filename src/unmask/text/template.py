"""The chat template, in a sandbox, with what ``transformers`` offers to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from ..core.errors import RequestError
from .seal import MARK

_HERE = f"{MARK}\ufdd1"  # where the last message ends; users cannot write it, since their marks are doubled


class Template:
    """A chat template.

    Args:
        source: in Jinja; "" where there is none.
        roles: names of control tokens, as ``bos_token``.
        mark: marks what must stay text in a user's text.
    """

    def __init__(self, source: str, roles: Mapping[str, str], mark: Callable[[str], str]) -> None:
        self.source, self.roles, self._mark = source, roles, mark

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_compiled"}

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """``{% generation %}`` stands around what the model writes, for training; here it changes nothing."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> nodes.Node:
                """What stands inside, in a scope of its own."""
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body).set_lineno(line)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _json
        environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        return environment.from_string(self.source)

    def render(
        self, messages: Sequence[Mapping[str, Any]], answer: bool, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """A conversation; control tokens by name, and what users have written marked.

        Args:
            messages: see :func:`unmask.text.conversation.check`.
            answer: followed by what begins the assistant's answer; False: the last message is left open instead.
            tools: functions that the model may call, as ``transformers`` gives them to templates.

        Raises:
            RequestError: there is no template, or it does not accept the conversation.
        """
        if not self.source:
            raise RequestError("the model has no chat template; give the prompt as plain text and chat=False")
        shown: list[dict[str, Any]] = [self._safe(message) for message in messages]
        last, space = "", ""
        if not answer:
            last = shown[-1]["content"]
            body = last.rstrip()
            space = last[len(body) :]
            shown[-1]["content"] = body + _HERE + space
        try:
            text: str = self._compiled.render(
                messages=shown, tools=self._safe(tools), documents=None, add_generation_prompt=answer, **self.roles
            )
        except Exception as error:  # whatever the template's own code raises
            raise RequestError(f"the chat template does not accept this conversation: {error}") from None
        return text if answer else _open_end(text, space)

    def _safe(self, value: Any) -> Any:
        """The same value with every text in it marked."""
        if isinstance(value, str):
            return self._mark(value)
        if isinstance(value, Mapping):
            return {self._safe(key): self._safe(one) for key, one in value.items()}
        return [self._safe(one) for one in value] if isinstance(value, (list, tuple)) else value


def _open_end(text: str, space: str) -> str:
    """The text up to the end of the last message; with the blanks that end it, where the template keeps them."""
    at = text.rfind(_HERE)
    if at < 0:
        raise RequestError("the chat template does not show the last message; it cannot be continued")
    behind = text[at + len(_HERE) :]
    return text[:at] + (space if behind.startswith(space) else "")


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter ``tojson`` as chat templates expect it: nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
