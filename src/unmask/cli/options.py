"""The options that commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from .inputs import SEEDS

Model = Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id; none: the shipped one.")]
Policy = Annotated[str, typer.Option("--policy", "-p", help="See `unmask policies`.")]
Cache = Annotated[str, typer.Option("--cache", "-c", help="See `unmask caches`.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Most prompts decoded at a time.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per prompt; always so with --batch.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="File for the results; - standard output.")]
Trace = Annotated[str | None, typer.Option(help="JSONL file for every step of the decoding.")]
Picture = Annotated[str | None, typer.Option(help="SVG file for a picture: tokens coloured by step.")]
Animate = Annotated[bool, typer.Option("--animate", help="Let the picture play the decoding.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show the canvas fill in the terminal.")]
Seed = Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="Of the sampling noise.")]
Temperature = Annotated[float, typer.Option(help="Of sampling; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus filter in (0, 1]; 1: off.")]
TopK = Annotated[int, typer.Option(help="Sample from the k likeliest; 0: off.")]
Ban = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A token never to be said; can be repeated.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, float64 or auto.")]
