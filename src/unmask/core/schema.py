"""What is read from files, declared once as pydantic models; from one follow the check, the message and the default.

Importing this module imports pydantic: do it where a file is read, not at the top of what every command imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from .errors import RequestError

T = TypeVar("T", bound=BaseModel)
_SHOWN = 60  # characters of what was found

Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, lt=2.0**63)]
Name = Annotated[str, Field(min_length=1)]


class Schema(BaseModel):
    """Base of what a file holds: nothing is converted, no number is infinite, unknown keys are left alone.

    A field's ``description`` says what it is, its ``title`` what is accepted where that is a union.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


def parse(model: type[T], value: Any, where: str) -> T:
    """A value as a model.

    Args:
        model: what is expected.
        value: as JSON gives it.
        where: file and line, for the message.

    Raises:
        RequestError: one line that says where, which field, what was found and what is accepted.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RequestError(f"{where}: {explain(model, value, error)}") from None


def explain(model: type[BaseModel], value: Any, error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    return described(model, value, error.errors(include_url=False))


def described(model: type[BaseModel], value: Any, found: Sequence[ErrorDetails]) -> str:
    """The first of the errors that pydantic has found, in one line."""
    first = found[0]
    place, message = _place(value, first), first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        about = _field(model, first["loc"])[1]
        return f'no "{place}"' + (f"; expected: {about}" if about else "")
    if first["type"] == "extra_forbidden":
        return f"unknown key {first['loc'][-1]!r:.40}; accepted: {', '.join(_known(model, first['loc'][:-1]))}"
    if first["type"] == "value_error":
        return f'"{place}": {message}' if place else message
    title = _field(model, first["loc"])[2]
    same = [_accepted(e["msg"]) for e in found if e["input"] is first["input"]]  # of each member of a union
    accepted = f"be {title}" if title and len(found) > 1 else " or ".join(dict.fromkeys(same))
    if first["type"] in ("model_type", "model_attributes_type"):
        accepted = "be an object with " + ", ".join(f'"{key}"' for key in _known(model, first["loc"]))
    return f"{f'{chr(34)}{place}{chr(34)}' if place else 'it'} must {accepted}, got {first['input']!r:.{_SHOWN}}"


def _accepted(message: str) -> str:
    """``be a number``: what pydantic says, as it goes on behind "must"."""
    _, _, rest = message.partition(" should ")
    plain = rest.partition(" after validation")[0].replace("a valid integer", "an integer").replace("a valid ", "a ")
    return plain.replace("a string", "a text").replace("a dictionary", "an object") or message


def _place(value: Any, error: ErrorDetails) -> str:
    """``rows[0].prompt``: what of a location is in the value; the rest names members of unions."""
    text = ""
    loc = error["loc"]
    for index, part in enumerate(loc):
        inside = isinstance(part, int) and isinstance(value, (list, tuple)) and part < len(value)
        if inside or (isinstance(value, dict) and part in value):
            value = value[part]
        elif not (error["type"] == "missing" and index == len(loc) - 1):
            continue
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part:.40}"
    return text


def _field(model: Any, loc: Sequence[int | str]) -> tuple[Any, str | None, str | None]:
    """The model at a location, or None, and description and title of the last field on the way."""
    about = title = None
    for part in loc:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            model, about, title = fields[part].annotation, fields[part].description, fields[part].title
        while not hasattr(model, "model_fields") and get_args(model):
            model = next((one for one in get_args(model) if hasattr(one, "model_fields")), get_args(model)[0])
    return model, about, title


def _known(model: Any, loc: Sequence[int | str]) -> list[str]:
    return list(getattr(_field(model, loc)[0], "model_fields", {}))
