"""``unmask generate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import RequestError
from . import options as o
from .decoding import Files, Run, decode
from .inputs import PROMPT

if TYPE_CHECKING:
    from ..measure.profile import Profile

_Text = Annotated[str | None, typer.Argument(metavar="[PROMPT|-]", help="The prompt; - reads it from standard input.")]


_Profile = Annotated[
    str | None,
    typer.Option(help="JSON file of `unmask tune`: gives policy, cache and the default of --gen-length."),
]


def generate(
    context: typer.Context,
    prompt: _Text = None,
    *,
    profile: _Profile = None,
    model: o.Model = None,
    policy: o.Policy = "slowfast",
    cache: o.Cache = "none",
    gen_length: Annotated[int, typer.Option("--gen-length", "-n", min=1, help="Tokens of the response.")] = 128,
    batch: Annotated[str | None, typer.Option(help="JSONL file of prompts; - reads standard input.")] = None,
    batch_size: o.BatchSize = 32,
    json: o.Json = False,
    output: o.Output = None,
    trace: o.Trace = None,
    picture: o.Picture = None,
    animate: o.Animate = False,
    watch: o.Watch = False,
    seed: o.Seed = 0,
    temperature: o.Temperature = 0.0,
    top_p: o.TopP = 1.0,
    top_k: o.TopK = 0,
    ban: o.Ban = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    no_eos_stop: Annotated[bool, typer.Option("--no-eos-stop", help="Fill all of --gen-length.")] = False,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Give the prompt without chat template.")] = False,
) -> None:
    """Generate a response to PROMPT, or to every prompt of a file."""
    tuned = _tuned(profile, context)
    if tuned:
        policy, cache = tuned.policy, tuned.cache
        gen_length = gen_length if _given(context, "gen_length") else tuned.gen_length
    common: dict[str, Any] = {
        "gen_length": gen_length,
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "banned": ban,
        "eos_stop": not no_eos_stop,
        "chat": False if no_chat else None,
    }
    decode(
        prompt,
        PROMPT,
        Files(batch, output, trace, picture, animate),
        Run(model, policy, cache, batch_size, json, watch, device, dtype, tuned),
        lambda lm, record: lm.requests([record.value], **{**common, **record.own}),
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


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
