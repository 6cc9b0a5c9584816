"""``unmask generate``."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import RequestError
from .decoding import decode
from .inputs import PROMPT
from .options import Decoding, Loading, Sampling, takes
from .outputs import check_distinct

if TYPE_CHECKING:
    from ..api import Model
    from ..profiles import Profile

_Text = Annotated[str | None, typer.Argument(metavar="[PROMPT|-]", help="The prompt; - reads it from standard input.")]


_Profile = Annotated[
    str | None,
    typer.Option(help="JSON file of `unmask tune`: gives policy, cache and the default of --gen-length."),
]


@takes(batch="JSONL file of prompts; - reads standard input.")
def generate(
    context: typer.Context,
    prompt: _Text = None,
    *,
    profile: _Profile = None,
    where: Loading,
    options: Decoding,
    sampling: Sampling,  # type: ignore[valid-type]
) -> None:
    """Generate a response to PROMPT, or to every prompt of a file."""
    tuned = _tuned(profile, context)
    if tuned:
        for name in ("output", "trace", "picture"):
            check_distinct({"--profile": tuned.path, f"--{name}": getattr(options, name)})
        length = options.gen_length if _given(context, "gen_length") else tuned.gen_length
        if (temperature := vars(sampling)["temperature"]) != 0:
            raise RequestError(f"--profile is for temperature 0, got --temperature {temperature:g}")
        options = replace(options, policy=tuned.policy, cache=tuned.cache, gen_length=length)
    decode(
        prompt,
        PROMPT,
        where,
        options,
        {"gen_length": options.gen_length, **vars(sampling)},
        lambda lm, value, given: lm.requests([value], **given),
        (lambda lm: _check(tuned, lm, where, options, sampling)) if tuned else None,
    )


def _tuned(path: str | None, context: typer.Context) -> Profile | None:
    """The profile, where one is asked for.

    Raises:
        RequestError: it cannot be used, or a policy or cache is given beside it.
    """
    if path is None:
        return None
    for name in ("policy", "cache"):
        if _given(context, name):
            raise RequestError(f"--profile gives the {name}: leave out --{name}, or --profile")
    from ..profiles import read

    return read(path)


def _check(tuned: Profile, lm: Model, where: Loading, options: Decoding, sampling: Any) -> None:
    """Refuse other weights; warn of what else is not as it was tuned."""
    from ..api import BUNDLED_NAME

    tuned.check(lm)
    differ = {
        tuned.differences(lm, where.model or BUNDLED_NAME, options.gen_length or tuned.gen_length): True,
        "the early stop": sampling.ignore_eos,
        "the chat template": options.chat is False and lm.text is not None and lm.text.chat,
        "no stop strings": bool(sampling.stop),
    }
    if found := ", ".join(what for what, differs in differ.items() if what and differs):
        print(f"warning: {tuned.path} was made with {found}; its guarantee is for that", file=sys.stderr)


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
