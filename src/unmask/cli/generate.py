"""``unmask generate``."""

from __future__ import annotations

from typing import Annotated

import typer

from .decoding import decode
from .inputs import PROMPT
from .options import Decoding, takes

_Text = Annotated[str | None, typer.Argument(metavar="[PROMPT|-]", help="The prompt; - reads it from standard input.")]


@takes(
    batch="JSONL file of prompts; - reads standard input.",
    no_eos_stop="Fill all of --gen-length.",
    no_chat="Give the prompt without chat template.",
)
def generate(prompt: _Text = None, *, options: Decoding) -> None:
    """Generate a response to PROMPT, or to every prompt of a file."""
    common = {"gen_length": options.gen_length, **options.sampling}
    decode(prompt, PROMPT, options, lambda lm, record: lm.requests([record.value], **{**common, **record.own}))
