"""``unmask infill``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as o
from .decoding import Files, Run, decode
from .inputs import TEXT

_Text = Annotated[
    str | None,
    typer.Argument(
        metavar="[TEXT|-]", help="The text, with gaps as [MASK] or [MASK*12]; - reads it from standard input."
    ),
]
_Prompt = Annotated[str | None, typer.Option("--prompt", help="A user's message that the text is the answer to.")]


def infill(
    text: _Text = None,
    *,
    prompt: _Prompt = None,
    model: o.Model = None,
    policy: o.Policy = "slowfast",
    cache: o.Cache = "none",
    batch: Annotated[str | None, typer.Option(help="JSONL file of texts; - reads standard input.")] = None,
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
    no_eos_stop: Annotated[bool, typer.Option("--no-eos-stop", help="Fill all of a gap at the end.")] = False,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Give --prompt without chat template.")] = False,
) -> None:
    """Fill the gaps of TEXT, or of every text of a file, and print it whole. What is given stays as it is."""
    common: dict[str, Any] = {
        "prompts": prompt,
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "banned": ban,
        "eos_stop": not no_eos_stop,
        "chat": False if no_chat else None,
    }
    decode(
        text,
        TEXT,
        Files(batch, output, trace, picture, animate),
        Run(model, policy, cache, batch_size, json, watch, device, dtype),
        lambda lm, record: lm.infill_requests([record.value], **{**common, **record.own}),
    )
