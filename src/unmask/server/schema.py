"""Bodies of requests. Sampling parameters are derived from :class:`~unmask.engine.request.SamplingParams`."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..core.schema import Schema
from ..engine.request import SEEDS, SamplingParams
from .errors import wrong

MOST_STOPS = 32
_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
_Several = Annotated[list[str], Field(min_length=1)]
_Tokens = Annotated[int, Field(ge=1, lt=2**31)]
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # what cannot be honoured, and the values that ask for nothing
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


class Options(Schema):
    """The object ``unmask`` of a request: what OpenAI's parameters have no word for."""

    model_config = ConfigDict(extra="forbid")

    policy: str | None = Field(None, min_length=1, max_length=1000, description='policy, such as "threshold(tau=0.9)"')
    cache: str | None = Field(None, min_length=1, max_length=1000, description='cache, such as "dllm(kp=2,kr=1)"')
    max_nfe: int | None = Field(None, ge=1, lt=2**31, description="most forward passes; the response ends with them")
    stream: str | None = Field(None, pattern="^(text|steps)$", description='"steps": what every forward pass does')
    timeout: float | None = Field(None, gt=0, lt=2**31, description="seconds after which the request ends with 504")
    regex: str | None = Field(None, description="the same as the request's own; see there")
    json_schema: str | bool | dict[str, Any] | None = Field(None, description="the same as the request's own")
    choices: str | list[str] | None = Field(None, description="the same as the request's own")


class StreamOptions(BaseModel):
    """OpenAI's ``stream_options``."""

    include_usage: bool | None = None


class Named(Schema):
    """A JSON schema in OpenAI's ``response_format``."""

    model_config = ConfigDict(extra="ignore")

    body: dict[str, Any] = Field(alias="schema", description="the JSON schema")


class Format(Schema):
    """OpenAI's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Named | None = None


class _Base(Schema):
    """What all requests have."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="name of the model; none: the one that is served")
    n: int | None = Field(None, ge=1, le=1024, description="responses to each prompt")
    stream: bool | None = Field(None, description="send the response as server-sent events while it is decoded")
    stream_options: StreamOptions | None = None
    unmask: Options = Field(Options.model_validate({}), description="what OpenAI's parameters have no word for")

    def ignored(self) -> list[str]:
        """Names of the fields that have no effect.

        Raises:
            Refused: one that cannot be honoured asks for something; names it.
        """
        extra = self.model_extra or {}
        for name, value in extra.items():
            if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
                neutral = "".join(f", or {accepted!r}" for accepted in _NEUTRAL[name])
                raise wrong(f"{name} is not supported; leave it out{neutral}", name, "unsupported_parameter")
        return sorted(extra)

    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that are given.

        Raises:
            Refused: a format without its schema, or two of what the response must be.
        """
        given = {name: value for name in _NAMES if (value := getattr(self, name, None)) is not None}
        for name in CONSTRAINTS:
            if (value := getattr(self.unmask, name)) is not None:
                if name in given:
                    raise wrong(f"{name} and unmask.{name} say the same; give one of them", f"unmask.{name}")
                given[name] = value
        form: Format | None = getattr(self, "response_format", None)
        if form is None or form.type == "text":
            return given
        if form.type == "json_schema" and form.json_schema is None:
            raise wrong(
                'response_format of the type json_schema needs "json_schema": {"schema": {...}}', "response_format"
            )
        if "json_schema" in given:
            raise wrong("json_schema and response_format say the same; give one of them", "response_format")
        return given | {"json_schema": form.json_schema.body if form.json_schema else {"type": "object"}}


def _sampling() -> Any:
    """One field for each of SamplingParams, with its bounds and description; null: not given."""
    made: dict[str, Any] = {}
    for f in fields(SamplingParams):
        rule, kind = f.metadata, str(f.type)
        bounds = {key: rule[key] for key in ("ge", "gt", "le") if rule[key] is not None}
        accepted: Any = {"float": float, "int": int, "bool": bool, "str": str}.get(kind.removesuffix(" | None"))
        if accepted is int:
            bounds = {"ge": -SEEDS, "le": SEEDS - 1} | bounds
        if "str | int" in kind:
            accepted = list[str | int]
        elif f.name == "json_schema":
            accepted = str | bool | dict[str, Any]
        elif kind.startswith("tuple"):
            accepted, bounds = str | list[str], {}
        default = rule["doc"] + (
            "" if kind.startswith("tuple") else f" (default {f.default!r})".replace("None", "none")
        )
        made[f.name] = (accepted | None, Field(None, description=default, **bounds))
    return create_model("Sampling", __base__=_Base, **made)


CONSTRAINTS = ("regex", "json_schema", "choices")
_NAMES = tuple(f.name for f in fields(SamplingParams))
Sampling: Any = _sampling()


class Completion(Sampling):  # type: ignore[misc]
    """A request to ``/v1/completions``."""

    prompt: str | _Several | _Ids | Annotated[list[_Ids], Field(min_length=1)] = Field(
        title="a text, a list of texts, a list of ids or a list of these", description="text as it is, or ids"
    )
    suffix: str | None = Field(None, description="text behind the response, which then fills the gap between the two")
    max_tokens: _Tokens | None = Field(None, description="tokens of the response, exact; none: the server's default")
    logprobs: int | None = Field(None, ge=0, le=1, description="1: of each token, its logarithm at its commit")
    echo: bool | None = Field(None, description="begin the text with the prompt")
    response_format: Format | None = Field(None, description="JSON, by a schema or any; see json_schema")


class Message(Schema):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Any = Field(None, title="a text or a list of parts", description="a text, or parts of the type text")


class Function(Schema):
    """What OpenAI's ``tools`` say of a function."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$", description="letters, digits, _ and -, 64 at most")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments, an object")

    def arguments(self) -> dict[str, Any]:
        """The JSON schema of its arguments; of a function without parameters, the empty object."""
        own = {"type": "object", **(self.parameters or {})}
        none = not any(own.get(key) for key in ("properties", "additionalProperties", "patternProperties", "required"))
        plain = own.keys() <= {"type", "properties", "required", "additionalProperties", "$schema", "title"}
        return {**own, "additionalProperties": False} if none and plain else own


class Tool(Schema):
    """One of OpenAI's ``tools``."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: Function


class _Name(BaseModel):
    name: str


class NamedTool(BaseModel):
    """The function that must be called."""

    type: Literal["function"]
    function: _Name


class _Allowed(BaseModel):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedTools(BaseModel):
    """The functions that may be called, of those that are given."""

    type: Literal["allowed_tools"]
    allowed_tools: _Allowed


class Chat(Sampling):  # type: ignore[misc]
    """A request to ``/v1/chat/completions``."""

    messages: list[Message] = Field(
        min_length=1, description="the conversation; a last one of the assistant is continued"
    )
    max_tokens: _Tokens | None = Field(None, description="tokens of the response, exact; none: the server's default")
    max_completion_tokens: _Tokens | None = Field(None, description="another name of max_tokens")
    logprobs: bool | None = Field(None, description="of each token, the logarithm of its probability at its commit")
    response_format: Format | None = Field(None, description="JSON, by a schema or any; see json_schema")
    top_logprobs: int | None = Field(None, ge=0, le=1, description="no more than the token itself is known")
    tools: list[Tool] | None = Field(None, max_length=128, description="functions that the response may call")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = Field(
        None, title='"none", "auto", "required" or a function', description="whether the response calls one; none: auto"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: no more than one call")


class Infill(Sampling):  # type: ignore[misc]
    """A request to ``/v1/infill``."""

    text: str | _Several | _Ids = Field(
        title="a text, a list of texts or a list of ids",
        description="text with gaps [MASK] or [MASK*12]; ids with mask ids",
    )
    prompt: str | list[Message] | None = Field(
        None, title="a text or a conversation", description="what the text is the answer to; in the chat template"
    )
    chat: bool | None = Field(None, description="apply the chat template to prompt; none: if the model is for chat")
