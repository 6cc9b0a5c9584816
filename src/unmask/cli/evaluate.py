"""``unmask eval``."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import RequestError
from . import options as o
from .outputs import check_writable

_Names = Annotated[str, typer.Option("--tasks", "-t", help="Names of tasks, groups or tags, with commas.")]
_Include = Annotated[list[str] | None, typer.Option(metavar="DIR", help="Folder of own tasks; can be repeated.")]
_Length = Annotated[
    int | None, typer.Option("--gen-length", "-n", min=1, help="Tokens of a response; none: the task's own, or 256.")
]
_Folder = Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for results and answers.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")]
_Limit = Annotated[
    float | None, typer.Option(help="The first so many documents of each task; below 1, that share of them.")
]
_Shots = Annotated[int | None, typer.Option(min=0, help="Examples before each question; none: the task's own.")]
_Chat = Annotated[bool, typer.Option("--chat", help="Apply the chat template.")]
_System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")]
_Hot = Annotated[float | None, typer.Option(help="Of sampling; none: as the task says, else greedy.")]
_TopP = Annotated[float | None, typer.Option(help="Nucleus filter in (0, 1]; none: as the task says.")]


@dataclass(frozen=True)
class Likelihoods:
    """How likelihoods are estimated; see :func:`.options.takes`."""

    mc_num: Annotated[int, typer.Option(min=1, help="Most masks per continuation for likelihoods.")] = 128
    mc_batch_size: Annotated[int, typer.Option(min=1, help="Most rows in a forward for likelihoods.")] = 32
    mc_seed: Annotated[int, typer.Option(min=0, max=o.SEEDS - 1, help="Of the masks.")] = 0
    cfg: Annotated[float, typer.Option(help="Classifier-free guidance of likelihoods; 0: off.")] = 0.0
    no_greedy_check: Annotated[bool, typer.Option("--no-greedy-check", help="See docs/eval.md.")] = False

    @property
    def arguments(self) -> dict[str, Any]:
        """As :class:`unmask.evaluation.model.UnmaskLM` takes them."""
        own = dict(vars(self))
        return {"is_check_greedy": not own.pop("no_greedy_check"), **own}


@dataclass(frozen=True)
class Prompting:
    """What is asked; see :func:`.options.takes`."""

    limit: _Limit = None
    num_fewshot: _Shots = None
    gen_length: _Length = None
    chat: _Chat = False
    system: _System = None


@dataclass(frozen=True)
class Responses:
    """How responses are made, beside policy and cache; see :func:`.options.takes`."""

    temperature: _Hot = None
    top_p: _TopP = None
    seed: o.Seed = 0
    add_bos_token: Annotated[bool, typer.Option("--add-bos-token", help="Begin every prompt with it.")] = False
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Fill all of a response.")] = False

    @property
    def arguments(self) -> dict[str, Any]:
        """As :class:`unmask.evaluation.model.UnmaskLM` takes them."""
        return dict(vars(self))


@o.takes(without=("compile", "cuda_graphs"))
def evaluate(
    tasks: _Names,
    *,
    include_path: _Include = None,
    policy: o.Policy = None,
    cache: o.Cache = None,
    prompting: Prompting,
    batch_size: o.BatchSize = 32,
    output: _Folder = None,
    resume: _Resume = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    responses: Responses,
    likelihoods: Likelihoods,
    run_unsafe_code: Annotated[bool, typer.Option("--run-unsafe-code", help="Run code the model has written.")] = False,
    where: o.Loading,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look up tasks, policy and cache.")] = False,
) -> None:
    """Score a model on tasks of lm-evaluation-harness, its own or those of a folder."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    _quiet()
    from .. import registry
    from ..evaluation import run

    chosen = "the model's policy" if policy is None else str(registry.policy(policy))
    kept = str(registry.cache(cache or "none"))
    run.check_limit(prompting.limit)
    folder = None if output is None else Path(output)
    if output is not None:
        check_writable(output and str(Path(output) / run.ANSWERS), make=True, regular=True)  # no name stays none
    found = run.find(names, include_path or ())
    if dry_run:
        for name, kind, file in found.about():
            print(f"{name}  {kind}  {file}")
        print(f"{chosen} + {kept if policy or cache else 'its cache'}")
        return
    ledger = run.prepare(folder, resume)
    from ..evaluation.model import UnmaskLM

    with where.begun():
        lm = UnmaskLM(
            where.model,
            policy,
            cache,
            gen_length=prompting.gen_length or 256,
            batch_size=batch_size,
            device=where.device,
            dtype=where.dtype,
            revision=where.revision,
            adapter=where.adapter,
            block_length=where.block_length,
            quantize=where.quantize,
            ledger=ledger,
            **responses.arguments,
            **likelihoods.arguments,
        )
    if prompting.chat and not lm.text.chat:
        raise RequestError(f"{lm.name} has no chat template; leave out --chat")
    results = run.evaluate(lm, found, **vars(prompting), unsafe_code=run_unsafe_code)
    if folder is not None:
        run.write(folder, results)
    print(run.dumps({k: v for k, v in results.items() if k != "samples"}) if json else run.tables(results))


def _quiet() -> None:
    """Standard error is for errors, and for progress where somebody watches."""
    logging.getLogger("lm_eval").setLevel(os.environ.get("LMEVAL_LOG_LEVEL", "ERROR").upper())
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
