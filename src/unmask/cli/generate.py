"""``unmask generate``."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import RequestError
from .decoding import decode
from .inputs import PROMPT
from .options import Decoding, takes
from .outputs import check_distinct

if TYPE_CHECKING:
    from ..api import Model
    from ..measure.profile import Profile

_Text = Annotated[str | None, typer.Argument(metavar="[PROMPT|-]", help="The prompt; - reads it from standard input.")]


_Profile = Annotated[
    str | None,
    typer.Option(help="JSON file of `unmask tune`: gives policy, cache and the default of --gen-length."),
]


@takes(
    batch="JSONL file of prompts; - reads standard input.",
    no_eos_stop="Fill all of --gen-length.",
    no_chat="Give the prompt without chat template.",
)
def generate(context: typer.Context, prompt: _Text = None, *, profile: _Profile = None, options: Decoding) -> None:
    """Generate a response to PROMPT, or to every prompt of a file."""
    tuned = _tuned(profile, context)
    if tuned:
        for name in ("output", "trace", "picture"):
            check_distinct({"--profile": tuned.path, f"--{name}": getattr(options, name)})
        length = options.gen_length if _given(context, "gen_length") else tuned.gen_length
        if options.temperature != 0:
            raise RequestError(f"--profile is for temperature 0, got --temperature {options.temperature:g}")
        options = replace(options, policy=tuned.policy, cache=tuned.cache, gen_length=length)
    common = {"gen_length": options.gen_length, "stop": options.stop, **options.sampling}
    decode(
        prompt,
        PROMPT,
        options,
        lambda lm, record: lm.requests([record.value], **{**common, **record.own}),
        (lambda lm: _check(tuned, lm, options)) if tuned else None,
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
    from ..measure.profile import read

    return read(path)


def _check(tuned: Profile, lm: Model, options: Decoding) -> None:
    """Refuse other weights; warn of what else is not as it was tuned."""
    from ..api import SHIPPED_NAME

    tuned.check(lm)
    differ = {
        tuned.differences(lm, options.model or SHIPPED_NAME, options.gen_length): True,
        "the early stop": options.no_eos_stop,
        "the chat template": options.no_chat and lm.text is not None and lm.text.chat,
        "no stop strings": bool(options.stop),
    }
    if said := ", ".join(what for what, differs in differ.items() if what and differs):
        print(f"warning: {tuned.path} was made with {said}; its guarantee is for that", file=sys.stderr)


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
