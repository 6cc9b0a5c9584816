"""The options that commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import Field, dataclass, fields, is_dataclass, make_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ..core.errors import RequestError
from ..engine.request import SEEDS, SamplingParams
from .progress import loading

if TYPE_CHECKING:
    from ..api import Model as Loaded

TASKS = "Family that ships, gym:NAME of reasoning-gym, or FILE.jsonl with prompt and answer"

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Folder, GGUF file, hub id or bundled model; none: unmask-tiny.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Adapter = Annotated[str | None, typer.Option(help="Folder or hub id of a LoRA adapter to merge.")]
BlockLength = Annotated[
    int | None, typer.Option(help="Block length of a block-causal model whose config and name do not say it.")
]
Policy = Annotated[
    str | None, typer.Option("--policy", "-p", help="See `unmask policies`; none: what the model recommends.")
]
Cache = Annotated[
    str | None, typer.Option("--cache", "-c", help="See `unmask caches`; none: the model's, or none with --policy.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Most responses decoded at a time.")]
Memory = Annotated[float | None, typer.Option(help="Most MiB for the responses being decoded; none: no limit.")]
Samples = Annotated[int, typer.Option("--n", min=1, help="Samples of each prompt.")]
Resume = Annotated[bool, typer.Option("--resume", help="Keep what --output holds of the same requests already.")]
Chat = Annotated[bool | None, typer.Option("--chat/--no-chat", help="Chat template; none: if the model is for chat.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per prompt; always so with --batch.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="File for the results; - standard output.")]
Trace = Annotated[str | None, typer.Option(help="JSONL file for every step of the decoding.")]
Picture = Annotated[str | None, typer.Option(help="SVG file for a picture: tokens coloured by step.")]
Animate = Annotated[bool, typer.Option("--animate", help="Let the picture play the decoding.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show the canvas fill in the terminal.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, float64 or auto.")]
Threads = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0: as many as an operation is worth.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile parts of the model; the first forwards take long.")]
CudaGraphs = Annotated[
    str, typer.Option("--cuda-graphs", help="auto: on CUDA record layers and launch them at once; off: never.")
]
Quantize = Annotated[
    str, typer.Option(help="int8, int4, with +head for the head as well, none, or auto: as the checkpoint is stored.")
]
Ray = Annotated[int | None, typer.Option(min=1, help="Spread the batch over so many workers of a Ray cluster.")]
RayAddress = Annotated[
    str | None, typer.Option(help="Ray cluster, as HOST:PORT or auto; none: one started on this machine.")
]
GenLength = Annotated[
    int | None,
    typer.Option("--gen-length", "-n", min=1, help="Tokens of the response; none: what the model recommends."),
]
Batch = Annotated[str | None, typer.Option(help="JSONL file; - reads standard input.")]


def _doc(name: str) -> str:
    """The help of a sampling parameter."""
    text: str = next(f.metadata["doc"] for f in fields(SamplingParams) if f.name == name)
    return text[0].upper() + text[1:] + "."


Seed = Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="Sampling seed.")]
Temperature = Annotated[float, typer.Option(help=_doc("temperature"))]


@dataclass(frozen=True)
class Loading:
    """Which model, where, and how; see :func:`takes`."""

    model: Model = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    threads: Threads = 0
    compile: Compile = False
    revision: Revision = None
    adapter: Adapter = None
    block_length: BlockLength = None
    cuda_graphs: CudaGraphs = "auto"
    quantize: Quantize = "auto"

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Set the threads, and tell a terminal what is being read."""
        if self.threads:
            from ..core import threads

            threads.fix(self.threads)
        with loading(self.model):
            yield

    def load(self) -> Loaded:
        """The model."""
        from .. import load

        with self.begun():
            return load(
                self.model,
                self.device,
                self.dtype,
                self.compile,
                revision=self.revision,
                adapter=self.adapter,
                block_length=self.block_length,
                cuda_graphs=self.cuda_graphs,
                quantize=self.quantize,
            )


@dataclass(frozen=True)
class Decoding:
    """The options of commands that decode, in the order in which their help lists them; see :func:`takes`."""

    policy: Policy = None
    cache: Cache = None
    gen_length: GenLength = None
    n: Samples = 1
    chat: Chat = None
    batch: Batch = None
    batch_size: BatchSize = 32
    memory: Memory = None
    json: Json = False
    output: Output = None
    resume: Resume = False
    trace: Trace = None
    picture: Picture = None
    animate: Animate = False
    watch: Watch = False
    ray: Ray = None
    ray_address: RayAddress = None


def declared(field: Field[Any], name: str, text: str | None = None) -> Any:
    """The annotation of an option for a field of a dataclass made with :func:`~unmask.core.config.param`."""
    kinds: dict[str, Any] = {"float": float, "int": int, "bool": bool, "str": str}
    text = text or field.metadata["doc"]
    several, kind = str(field.type).startswith("tuple"), str(field.type).removesuffix(" | None")
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=text[0].upper() + text[1:] + ".",
        metavar="FILE" if field.metadata.get("file") else "TEXT" if several else None,
    )
    accepted = list[str] if several else kinds[kind]
    return Annotated[accepted | None if several or kind != str(field.type) else accepted, option]


def sampling_options() -> type:
    """A dataclass of options, one for each field of :class:`~unmask.engine.request.SamplingParams`."""
    made = [
        (f.name, declared(f, f.name), None if str(f.type).startswith("tuple") else f.default)
        for f in fields(SamplingParams)
    ]
    return make_dataclass("Sampling", made, frozen=True)


Sampling = sampling_options()


def pair(option: str, text: str) -> tuple[str, str, bool]:
    """Policy and cache, as their objects print them, and whether responses end early.

    ``autoregressive(MODEL)``, as results have it, stands where policies stand; only measuring takes it. So does
    ``autoregressive(MODEL, drafter=SPEC)``.

    Raises:
        RequestError: not ``POLICY|CACHE`` or ``POLICY|CACHE|full``; names the option.
        SpecError: an unknown policy, cache or parameter.
    """
    from .. import registry
    from ..measure import autoregressive

    policy, bar, cache = text.removesuffix("|full").rpartition("|")
    if not (bar and policy.strip() and cache.strip()):
        raise RequestError(f"{option}: expected POLICY|CACHE or POLICY|CACHE|full, got {text!r}")
    causal = autoregressive.parts_of(policy)
    how = str(registry.policy(policy)) if causal is None else autoregressive.spec(*causal)
    return how, str(registry.cache(cache)), not text.endswith("|full")


def baseline(text: str) -> tuple[str, str, bool] | None:
    """What others are compared with; None for ``-``.

    Raises:
        UnmaskError: see :func:`pair`.
    """
    return None if text == "-" else pair("--baseline", text)


def takes(*, without: tuple[str, ...] = (), **helps: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: a parameter that is a dataclass of options has its fields on the command line instead.

    Args:
        without: fields that it does not take.
        helps: what the help says of a field, where commands differ in that.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        kinds = {p.name: p.annotation for p in signature.parameters.values()}
        groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
        shared = {name: _parameters(group, without, helps) for name, group in groups.items()}

        @wraps(command)
        def run(*args: Any, **given: Any) -> None:
            made = {n: group(**{p.name: given.pop(p.name) for p in shared[n]}) for n, group in groups.items()}
            command(*args, **given, **made)

        flat = [own for p in signature.parameters.values() for own in shared.get(p.name, [p])]
        vars(run)["__signature__"] = signature.replace(parameters=flat)
        return run

    return decorate


def _parameters(group: Any, without: tuple[str, ...], helps: dict[str, str]) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters by name."""
    kinds = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=f.default,
            annotation=_helped(kinds[f.name], helps.get(f.name)),
        )
        for f in fields(group)
        if f.name not in without
    ]


def _helped(annotation: Any, text: str | None) -> Any:
    """An annotated option with another help."""
    if text is None or get_origin(annotation) is not Annotated:
        return annotation
    kind, option = get_args(annotation)
    option = copy(option)
    option.help = text
    return Annotated[kind, option]
