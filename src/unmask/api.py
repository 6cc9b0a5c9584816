"""Load a model, generate, stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import registry
from .core.cache import Cache
from .core.errors import ModelError
from .core.policy import Policy
from .engine.loop import Step
from .engine.outcome import Event, Outcome
from .engine.request import Request
from .engine.scheduler import Engine
from .models import hub
from .models.denoiser import Denoiser
from .models.family import Recommended
from .models.graphs import Graphs
from .models.kernels import compiled
from .models.packing import Scheme
from .models.placement import pick_device, pick_dtype
from .models.quantised import left_to_itself
from .models.recommended import recommended
from .models.transformer import EAGER
from .models.weights import Checkpoint, load_denoiser
from .processor import PLAIN, Fixed, Params, Processor, Prompt
from .results import Result
from .scoring import score
from .text import Text

BUNDLED_NAME = "unmask-tiny"  # in results, traces and profiles
BUNDLED = hub.BUNDLED[BUNDLED_NAME]


def load(
    path_or_id: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    block_length: int | None = None,
    cuda_graphs: str = "auto",
    quantize: str = "auto",
) -> Model:
    """Load a masked diffusion language model.

    Args:
        path_or_id: a Hugging Face folder, a hub id, the name of a bundled model, or None for ``unmask-tiny``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or ``"auto"``: the first GPU, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"`` or ``"auto"``: the checkpoint's own; float32
            where a CPU does not calculate in that.
        compile: let ``torch.compile`` fuse what stands between the products. The first forward passes take tens of
            seconds longer; see docs/speed.md for when it pays.
        revision: branch, tag or commit of a hub id.
        adapter: folder or hub id of a LoRA adapter (peft's format), which is merged into the weights; None: the one in
            the model's folder, if there is one.
        block_length: of a block-causal model such as SDAR; None: what its config or name says. It is a property of the
            weights; policies have a parameter of the same name.
        cuda_graphs: ``"auto"``: on CUDA the layers of short forward passes are recorded and launched at once;
            ``"off"``: never.
        quantize: ``"int8"``: weights and activations of the layers in 8 bits, products of integers; ``"int4"``: weights
            in 4 bits; with ``"+head"`` the head as well; ``"none"``: floating point numbers; ``"auto"``: as the
            checkpoint is stored. See docs/quantize.md.

    Raises:
        ModelError: no such model, unsupported family or variant, missing, truncated or mismatched weights, unknown
            device, dtype or kind of quantisation, nothing to compile with, a block length that is not known.
    """
    if not isinstance(compile, bool):
        raise ModelError(f"compile must be True or False, got {compile!r}")
    if cuda_graphs not in ("auto", "off"):
        raise ModelError(f"cuda_graphs must be 'auto' or 'off', got {cuda_graphs!r}")
    path = BUNDLED if path_or_id is None else path_or_id
    checkpoint = Checkpoint.find(path, revision=revision, adapter=adapter, block_length=block_length)
    scheme = Scheme.parse(quantize, checkpoint.stored)
    where = pick_device(device)
    kind = pick_dtype(dtype, checkpoint, where)
    text = Text.find(checkpoint.folder, checkpoint.control)
    spec = checkpoint.spec(len(text) if text else None, text.eos if text else ())
    if text:
        unknown = tuple(i for i in text.unknown if i < spec.limit)
        spec = replace(spec, tokenizer=str(checkpoint.folder), unknown=unknown)
    rounds = scheme is not None and scheme.kind == "int8"
    kernels = compiled(EAGER, where.type, rounds=rounds) if compile else EAGER  # refused before weights are read
    if compile:
        left_to_itself()
    denoiser = load_denoiser(checkpoint, spec, where, kind, scheme)
    denoiser.network.use(kernels)
    if cuda_graphs == "auto" and where.type == "cuda" and not denoiser.network.waits:
        denoiser.graphs = Graphs()
    return Model(denoiser, text, recommended(checkpoint))


class Model(Processor):
    """A loaded model.

    Attributes:
        denoiser: the network with its ids.
    """

    def __init__(self, denoiser: Denoiser, text: Text | None, recommended: Recommended = PLAIN) -> None:
        super().__init__(denoiser.spec, text, recommended)
        self.denoiser = denoiser

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_length: int | Sequence[int] | None = None,
        policy: str | Policy | None = None,
        cache: str | Cache | None = None,
        *,
        params: Params = None,
        chat: bool | None = None,
        fixed: Fixed = None,
        n: int = 1,
        batch_size: int = 32,
        memory: int | None = None,
        **sampling: Any,
    ) -> list[Result]:
        """Generate a response, or ``n`` of them, to each prompt.

        Args:
            prompts: a string, a list (or array) of ids, a conversation ``[{"role": ..., "content": ...}, ...]``, or a
                list of any of these. Lengths may differ. Strings are text: names of control tokens in them stay text.
            gen_length: response length in tokens, exact unless the policy changes it; one number, or one per prompt.
                None: the model's recommendation.
            policy, cache: specs such as ``"slowfast(tau_high=0.9)"`` and ``"dllm(kp=25,kr=5)"``, or objects. None: the
                model's recommendation; a policy given without a cache has none.
            params: a :class:`~unmask.engine.request.SamplingParams`, or one per prompt.
            chat: wrap strings in the chat template (default: when the model is a chat model).
            fixed: tokens of the response that are given, {position in the response: id}; one mapping for every prompt,
                or a list of them. No end of text is generated in front of them.
            n: samples of each prompt.
            batch_size: most responses decoded at a time; the next enters as one leaves.
            memory: most bytes that the responses being decoded may take; see :class:`~unmask.engine.scheduler.Engine`.
            sampling: fields of :class:`~unmask.engine.request.SamplingParams` by name, such as ``temperature=0.7``, in
                place of ``params``. ``seed`` may be one per prompt; with one number ``seed``, the i-th response has
                the seed ``seed + i``. Noise depends on (seed, position, step) alone, not on the batch.

        Returns:
            Results in the order of the prompts, ``n`` of each one after the other. A response that failed has the
            finish reason ``"error"`` and says why in ``error``; the others are whole.

        Raises:
            RequestError: empty batch or prompt, mask id in a prompt, too long for the context, values out of range.
            SpecError: unknown policy, cache or parameter.
        """
        requests = self.requests(
            prompts, gen_length, policy, cache, params=params, chat=chat, fixed=fixed, n=n, **sampling
        )
        return self._all(requests, batch_size, memory)

    def infill(
        self,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]],
        policy: str | Policy | None = None,
        cache: str | Cache | None = None,
        *,
        prompts: Prompt | Sequence[Prompt] | None = None,
        params: Params = None,
        chat: bool | None = None,
        n: int = 1,
        batch_size: int = 32,
        memory: int | None = None,
        **sampling: Any,
    ) -> list[Result]:
        r"""Fill the gaps of texts; every token that is given stays as it is.

        Args:
            texts: a string with gaps ``[MASK]`` (one token) or ``[MASK*12]``, or a list (or array) of ids with mask ids
                among them, or a list of these. ``\[MASK]`` is the text itself. No chat template is applied.
            policy, cache, params, n, batch_size, memory, sampling: see :meth:`generate`; policies that go from left to
                right fill one gap at the end alone. Only a gap at the end of a text can hold an end of text.
            prompts: what comes before the texts, one for all or one for each, encoded as :meth:`generate` does; not
                part of the results' text.
            chat: wrap ``prompts`` in the chat template.

        Returns:
            Results in the order of the texts; ``spans`` are the gaps.

        Raises:
            RequestError: no gap, one that cannot be read, too long for the context, values out of range, another option
                (a gap says how long it is, what is fixed stands in the text), a policy that cannot fill the gaps.
            SpecError: unknown policy, cache or parameter.
        """
        requests = self.infill_requests(
            texts, policy, cache, prompts=prompts, params=params, chat=chat, n=n, **sampling
        )
        return self._all(requests, batch_size, memory)

    def score_choices(
        self, prompt: Prompt | None, template: str, choices: Sequence[Any], *, chat: bool | None = None
    ) -> list[dict[str, float]]:
        """How probable each of several texts is in each gap of a template, read in one forward pass.

        ``prompt``: what comes before; None: nothing. For the rest see :func:`unmask.scoring.score`.
        """
        front = None if prompt is None else self._ids(0, prompt, chat)
        return score(self.denoiser, self.text, registry.cache("none"), front, template, choices)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_length: int | Sequence[int] | None = None,
        policy: str | Policy | None = None,
        cache: str | Cache | None = None,
        *,
        batch_size: int = 32,
        memory: int | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        """As :meth:`generate`, but yields each :class:`~unmask.engine.loop.Step` as it happens."""
        requests = self.requests(prompts, gen_length, policy, cache, **options)
        return (event for event in self.run(requests, batch_size, memory) if isinstance(event, Step))

    def run(self, requests: Sequence[Request], batch_size: int = 32, memory: int | None = None) -> Iterator[Event]:
        """Decode prepared requests; yields every event of the engine as it happens.

        Raises:
            RequestError, ModelError: a request that cannot be decoded, before anything is.
        """
        engine = self.engine(batch_size, memory)
        for request in requests:
            engine.add(request)

        def events() -> Iterator[Event]:
            while engine.busy:
                yield from engine.step()

        return events()

    def engine(self, batch_size: int = 32, memory: int | None = None) -> Engine:
        """An engine of its own, to which requests can be added at any time."""
        return Engine(self.denoiser, self.text, batch_size=batch_size, memory=memory)

    def _all(self, requests: Sequence[Request], batch_size: int, memory: int | None) -> list[Result]:
        outcomes = {
            event.request.id: event for event in self.run(requests, batch_size, memory) if isinstance(event, Outcome)
        }
        return [self.result(outcomes[r.id]) for r in requests]
