"""``unmask infill``."""

from __future__ import annotations

from typing import Annotated

import typer

from .decoding import decode
from .inputs import TEXT
from .options import Decoding, takes

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
    no_eos_stop="Fill all of a gap at the end.",
    no_chat="Give --prompt without chat template.",
)
def infill(text: _Text = None, *, prompt: _Prompt = None, options: Decoding) -> None:
    """Fill the gaps of TEXT, or of every text of a file, and print it whole. What is given stays as it is."""
    common = {"prompts": prompt, **options.sampling}
    decode(text, TEXT, options, lambda lm, record: lm.infill_requests([record.value], **{**common, **record.own}))
