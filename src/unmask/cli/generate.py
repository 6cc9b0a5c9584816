"""``unmask generate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import RequestError
from .inputs import SEEDS, Record, from_argument, from_file
from .outputs import Results, Trace, check_writable, opened
from .progress import loading

if TYPE_CHECKING:
    from ..api import Model
    from ..engine.batch import Request
    from ..results import Result
    from .progress import Display

_Text = Annotated[str | None, typer.Argument(metavar="[PROMPT|-]", help="The prompt; - reads it from standard input.")]


def generate(
    prompt: _Text = None,
    *,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id; none: the shipped one.")] = None,
    policy: Annotated[str, typer.Option("--policy", "-p", help="See `unmask policies`.")] = "slowfast",
    cache: Annotated[str, typer.Option("--cache", "-c", help="See `unmask caches`.")] = "none",
    gen_length: Annotated[int, typer.Option("--gen-length", "-n", min=1, help="Tokens of the response.")] = 128,
    batch: Annotated[str | None, typer.Option(help="JSONL file of prompts; - reads standard input.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts decoded at a time.")] = 32,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per prompt; always so with --batch.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File for the results; - standard output.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="JSONL file for every step of the decoding.")] = None,
    picture: Annotated[str | None, typer.Option(help="SVG file for a picture: tokens coloured by step.")] = None,
    animate: Annotated[bool, typer.Option("--animate", help="Let the picture play the decoding.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the canvas fill in the terminal.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="Of the sampling noise.")] = 0,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus filter in (0, 1]; 1: off.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest; 0: off.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, float64 or auto.")] = "auto",
    no_eos_stop: Annotated[bool, typer.Option("--no-eos-stop", help="Fill all of --gen-length.")] = False,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Give the prompt without chat template.")] = False,
) -> None:
    """Generate a response to PROMPT, or to every prompt of a file."""
    output = None if output == "-" else output
    _check_files(batch, output=output, trace=trace, picture=picture)
    records = _records(prompt, batch)
    if animate and picture is None:
        raise RequestError("--animate needs --picture FILE.svg")

    from .. import load, registry

    chosen, kept = registry.policy(policy), registry.cache(cache)
    with loading(model or "the shipped model"):
        lm = load(model, device, dtype)
    options = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "eos_stop": not no_eos_stop,
        "chat": False if no_chat else None,
    }
    requests = [
        _request(lm, record, i, {"gen_length": gen_length, "seed": seed} | options) for i, record in enumerate(records)
    ]
    decoding = lm.run(requests, chosen, kept, batch_size)  # checks them all, decodes nothing yet
    common = {"policy": str(chosen), "cache": str(kept), "model": model or "shipped"}
    with ExitStack() as stack:
        results = Results(stack.enter_context(opened(output)), json or batch is not None, common)
        traces = stack.enter_context(opened(trace))
        listener = Trace(traces, lm, requests, common) if traces else None
        scrolls = output is None and sys.stdout.isatty()  # the results themselves show how far it is
        display = stack.enter_context(_display(lm, requests, watch, batch is not None and not scrolls))
        finished = _run(lm, requests, decoding, results, listener, display)
        display.close(finished)
    if picture is not None:
        from ..viz import svg

        title = f"{chosen} + {kept}" if str(kept) != "none" else str(chosen)
        Path(picture).write_text(svg(lm, [(title, r) for r in finished], animate=animate), encoding="utf-8")


def _records(prompt: str | None, batch: str | None) -> list[Record]:
    if (prompt is None) == (batch is None):
        raise RequestError("give either one PROMPT (- reads it from standard input) or --batch FILE.jsonl")
    return from_file(batch) if batch is not None else [from_argument(prompt or "")]


def _check_files(batch: str | None, **outputs: str | None) -> None:
    """No file for two purposes, none that cannot be written; pictures are SVG."""
    seen: dict[Path, str] = {Path(batch).resolve(): "batch"} if batch not in (None, "-") else {}
    for name, path in outputs.items():
        if path is not None and (other := seen.setdefault(Path(path).resolve(), name)) != name:
            raise RequestError(f"--{name} and --{other} are the same file {path}")
        if path is not None:
            check_writable(path)
    picture = outputs.get("picture")
    if picture is not None and Path(picture).suffix.lower() != ".svg":
        raise RequestError(f"--picture writes SVG; expected a name that ends in .svg, got {picture}")


def _request(lm: Model, record: Record, index: int, options: dict[str, Any]) -> Request:
    """Encode and check one prompt.

    Raises:
        RequestError: names the prompt's line.
    """
    from dataclasses import replace

    own = {key: getattr(record, key) for key in ("gen_length", "seed") if getattr(record, key) is not None}
    try:
        return replace(lm.requests([record.prompt], **(options | own))[0], row=index)
    except RequestError as error:
        message = str(error).removeprefix("prompt 0: ").replace("prompt 0", "it")
        raise RequestError(f"{record.where}: {message}") from None


def _display(lm: Model, requests: Sequence[Request], watch: bool, bar: bool) -> Display:
    from .progress import Bar, Display, Watch

    if watch:
        return Watch(lm, requests)
    return Bar(len(requests)) if bar and sys.stderr.isatty() else Display()


def _run(
    lm: Model, requests: Sequence[Request], decoding: Any, results: Results, trace: Trace | None, display: Display
) -> list[Result]:
    """Decode; every listener hears of every step. Results in the order of the prompts."""
    finished: dict[int, Result] = {}
    try:
        for state, step in decoding:
            if trace:
                trace.add(step)
            done = lm.results(state) if step.finished else {}
            display.add(step, done)  # first, for it may have to leave the terminal to the results
            for row, result in sorted(done.items()):
                results.add(row, requests[row].seed, result)
            finished.update(done)
    except KeyboardInterrupt:
        display.close([])
        print(f"interrupted: {results.count} of {len(requests)} responses were written", file=sys.stderr)
        raise typer.Exit(130) from None
    return [finished[r.row] for r in requests]
