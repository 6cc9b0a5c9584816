"""``unmask infill``."""

from __future__ import annotations

from typing import Annotated

import typer

from .decoding import decode
from .inputs import TEXT
from .options import Decoding, Loading, Sampling, takes

_Text = Annotated[
    str | None,
    typer.Argument(
        metavar="[TEXT|-]", help="The text, with gaps as [MASK] or [MASK*12]; - reads it from standard input."
    ),
]
_Prompt = Annotated[str | None, typer.Option("--prompt", help="A user's message that the text is the answer to.")]


@takes(
    without=("gen_length", "stop"),
    batch="JSONL file of texts; - reads standard input.",
    ignore_eos="Fill all of a gap at the end, do not stop at an end of text.",
)
def infill(
    text: _Text = None,
    *,
    prompt: _Prompt = None,
    where: Loading,
    options: Decoding,
    sampling: Sampling,  # type: ignore[valid-type]
) -> None:
    """Fill the gaps of TEXT, or of every text of a file, and print it whole. What is given stays as it is."""
    decode(
        text,
        TEXT,
        where,
        options,
        {"prompts": prompt, **{name: value for name, value in vars(sampling).items() if name != "stop"}},
        lambda lm, value, given: lm.infill_requests([value], **given),
    )
