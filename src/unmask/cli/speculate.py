"""``unmask speculate``."""

from __future__ import annotations

import json as _json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import RequestError
from ..engine.request import SamplingParams
from . import options as o
from .inputs import CAUSAL, Record, from_argument, from_file
from .outputs import Output, check_distinct, check_writable
from .progress import loading

if TYPE_CHECKING:
    from ..speculative.loop import Job, Round, Row
    from ..speculative.model import CausalLM

_Text = Annotated[str | None, typer.Argument(metavar="[PROMPT|-]", help="The prompt; - reads it from standard input.")]
_Target = Annotated[str | None, typer.Option(help="Folder or hub id of a causal model; none: the bundled one.")]
_Drafter = Annotated[str | None, typer.Option("--drafter", "-d", help="See `unmask drafters`; none: the target alone.")]
_Length = Annotated[int, typer.Option("--gen-length", "-n", min=1, help="Tokens of the response, at most.")]
_BatchSize = Annotated[int, typer.Option(min=1, help="Responses decoded together.")]
_Trace = Annotated[str | None, typer.Option(help="JSONL file for every round: drafted, accepted, rejected.")]


@dataclass(frozen=True)
class Speculating:
    """The options beside those of sampling, in the order in which the help lists them."""

    target: _Target = None
    drafter: _Drafter = None
    device: o.Device = "auto"
    dtype: o.Dtype = "auto"
    threads: o.Threads = 0
    gen_length: _Length = 128
    n: o.Samples = 1
    chat: o.Chat = None
    batch: o.Batch = None
    batch_size: _BatchSize = 8
    json: o.Json = False
    output: o.Output = None
    trace: _Trace = None


@o.takes(without=CAUSAL.without, batch="JSONL file of prompts; - reads standard input.")
def speculate(
    prompt: _Text = None,
    *,
    options: Speculating,
    sampling: o.Sampling,  # type: ignore[valid-type]
) -> None:
    """Continue PROMPT, or every prompt of a file, with a causal model that verifies what a drafter proposes.

    The text is the model's own, whatever drafts: the drafter changes the time it takes.
    """
    output = None if options.output == "-" else options.output
    check_distinct(
        {"--batch": None if options.batch == "-" else options.batch, "--output": output, "--trace": options.trace}
    )
    for path in filter(None, (output, options.trace)):
        check_writable(path)
    if (prompt is None) == (options.batch is None):
        raise RequestError("give either one PROMPT (- reads it from standard input) or --batch FILE.jsonl")
    given = {name: value for name, value in vars(sampling).items() if name not in CAUSAL.without and value is not None}
    SamplingParams(**given)
    records = from_file(options.batch, CAUSAL) if options.batch is not None else [from_argument(prompt or "", CAUSAL)]
    lm = _load(options)
    jobs, owners = _jobs(lm, records, options, given)
    with ExitStack() as stack:
        results = stack.enter_context(Output.at(output))
        trace = stack.enter_context(Output.at(options.trace)) if options.trace else None
        failed = _run(lm, jobs, owners, options, results, trace)
    if failed:
        print(f"error: {failed[0]}", file=sys.stderr)
        raise typer.Exit(1)


def _load(options: Speculating) -> CausalLM:
    from .. import load_causal

    if options.threads:
        from ..core import threads

        threads.fix(options.threads)
    with loading(options.target):
        return load_causal(options.target, options.device, options.dtype)


def _jobs(
    lm: CausalLM, records: list[Record], options: Speculating, given: Mapping[str, Any]
) -> tuple[list[Job], list[Record]]:
    """What is to be decoded, and the record of each.

    Raises:
        RequestError: names the record's line.
    """
    jobs: list[Job] = []
    owners: list[Record] = []
    common = {"gen_length": options.gen_length, "n": options.n, "chat": options.chat, **given}
    for record in records:
        own = {**common, **record.own}
        length, count, chat = own.pop("gen_length"), own.pop("n"), own.pop("chat")
        if given.get("seed") is not None and "seed" not in record.own:
            own["seed"] = given["seed"] + len(jobs)
        try:
            made = lm.jobs([record.value], length, n=count, chat=chat, first=len(jobs), **own)
        except RequestError as error:
            raise RequestError(f"{record.where}: {error.what}") from None
        jobs += made
        owners += [record] * len(made)
    return jobs, owners


def _run(
    lm: CausalLM, jobs: list[Job], owners: list[Record], options: Speculating, results: Output, trace: Output | None
) -> list[str]:
    """Decode; results in the order of the jobs. Returns what went wrong."""
    failed: list[str] = []
    done: dict[int, Row] = {}
    following = 0
    try:
        events = lm.run(jobs, options.drafter, options.batch_size)
    except RequestError as error:
        where = owners[error.row].where if error.row is not None else "the prompt"
        raise RequestError(f"{where}: {error.what}") from None
    for event in events:
        if trace:
            trace.put(_json.dumps(_told(event)))
        done |= {row.job.id: row for row in event.finished}
        while following in done:
            result, record = lm.result(done.pop(following)), owners[following]
            if result.error is not None:
                failed.append(f"{record.where}: {result.error}")
            if options.json or options.batch is not None:
                about = asdict(result) | {"prompt_tokens": len(result.prompt_tokens)}
                setting = {"drafter": options.drafter, "target": options.target}
                about = {**record.carried, "index": following, **about, **setting}
                results.put(_json.dumps(about, ensure_ascii=False))
            elif result.error is None:
                results.put(result.text)
            following += 1
    return failed


def _told(event: Round) -> dict[str, Any]:
    """A line of a trace: of each row the drafted tokens, their parents, those accepted, what the text grew by."""
    rows = []
    drafts = event.tree.token.tolist() if event.tree else [[] for _ in event.rows]
    for i, row in enumerate(event.rows):
        parents = list(event.tree.parents[i]) if event.tree else []
        silent = event.tree.probe[i] if event.tree and event.tree.probe else frozenset()
        rejected = [node for node in range(len(parents)) if node not in event.nodes[i] and node not in silent]
        own = {"row": row, "drafted": drafts[i][: len(parents)], "parents": parents, "accepted": event.nodes[i]}
        rows.append(own | {"rejected": rejected, "tokens": event.tokens[i]})
    about = {f.name: getattr(event, f.name) for f in fields(event) if f.name in ("index", "seconds", "draft_seconds")}
    return about | {"rows": rows, "finished": [row.job.id for row in event.finished]}
