"""Decodings of the bundled model, recorded: what each forward pass predicted and committed, and replayed elsewhere.

The replay is the real engine with the real policy, cache, network and head; only what the policy reads of the
prediction is replaced by what was recorded, so that the policy takes the recorded path at the true cost. A policy that
reads logits decides on the network's own, and its commits are replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unmask import registry
from unmask.engine.loop import Step
from unmask.engine.request import Request, SamplingParams
from unmask.engine.scheduler import Engine
from unmask.models.denoiser import Denoiser

NOTHING = -torch.inf


@dataclass(frozen=True)
class Setting:
    """A policy under a cache; ``published``: it fills the whole response, whatever the text."""

    label: str
    policy: str
    cache: str = "none"
    published: bool = False


@dataclass
class Recording:
    """Of R rows, S forward passes, T positions.

    Attributes:
        prompts: ids of each.
        gen_length: of all.
        token, confidence: ``[R, S, T]`` predictions, -inf where there is none; ``probe`` the same, or None.
        commit: ``[R, S, T]`` the token committed; -1 where none was.
        work: ``[R, S]`` positions computed.
        final: ids of each row's response; ``tokens``: of these before the first end of text, ``nfe`` forward passes.
    """

    prompts: list[list[int]]
    gen_length: int
    token: Tensor
    confidence: Tensor
    probe: Tensor | None
    commit: Tensor
    work: Tensor
    final: dict[int, list[int]]
    tokens: dict[int, int]
    nfe: dict[int, int]

    def per_pass(self, rows: int) -> list[float]:
        """Positions computed in each forward pass of the first ``rows`` rows side by side."""
        summed: list[float] = self.work[:rows].sum(0).tolist()
        return summed[: max(self.nfe[row] for row in range(rows))]


@dataclass(frozen=True)
class Watched:
    """The state of a policy that is watched: its own, and ``[B]`` each row's place in the recording and its passes."""

    inner: Any
    row: Tensor
    count: Tensor


class Wrapped:
    """A policy with its commits noted or replaced; all else is its own."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def __str__(self) -> str:
        return str(self.policy)

    def init(self, canvas: Any, sampling: Any) -> Watched:
        """The row of the recording is the request's seed."""
        return Watched(self.policy.init(canvas, sampling), sampling.seed, torch.zeros_like(sampling.seed))

    def ask(self, canvas: Any, state: Watched) -> Any:
        """The policy's."""
        return self.policy.ask(canvas, state.inner)

    def notes(self, canvas: Any, before: Watched, after: Watched) -> Any:
        """None: nobody looks."""
        return {}


class Noting(Wrapped):
    """Writes down what is committed."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.log: list[tuple[Tensor, Tensor, Tensor]] = []

    def decide(self, canvas: Any, prediction: Any, state: Watched) -> tuple[Any, Watched]:
        """The policy's."""
        update, inner = self.policy.decide(canvas, prediction, state.inner)
        self.log.append((state.row, state.count, torch.where(update.write, update.token, -1)))
        return update, Watched(inner, state.row, state.count + 1)


class Forced(Wrapped):
    """Decides, and then commits what was recorded."""

    def __init__(self, policy: Any, recording: Recording) -> None:
        super().__init__(policy)
        self.recording = recording

    def decide(self, canvas: Any, prediction: Any, state: Watched) -> tuple[Any, Watched]:
        """The policy's state, but that a verifier has read as far as the recorded commits go."""
        update, inner = self.policy.decide(canvas, prediction, state.inner)
        commit = self.recording.commit
        at = state.count.clamp(max=commit.shape[1] - 1)
        token = commit[state.row, at, : canvas.tokens.shape[1]]
        write = (token >= 0) & canvas.masked
        if hasattr(inner, "memory"):
            known = canvas.frontier + write.sum(1) - 1
            inner = replace(inner, memory=replace(inner.memory, known=known))
        update = replace(update, write=write, token=torch.where(write, token, 0), remask=None)
        return update, Watched(inner, state.row, state.count + 1)


class Listening(Denoiser):
    """Writes down what it predicts."""

    log: list[tuple[Tensor, Tensor, Any, Tensor]]  # seed, step, prediction, work

    def __call__(self, canvas: Any, ask: Any, cache: Any, state: Any, sampling: Any, step: Any, **more: Any) -> Any:
        """As the denoiser."""
        answer = super().__call__(canvas, ask, cache, state, sampling, step, **more)
        said = replace(answer.prediction, logits=None)  # of all positions they would fill the memory
        self.log.append((sampling.seed, step, said, answer.work))
        return answer


class Replaying(Denoiser):
    """Predicts, and then says what was recorded.

    Attributes:
        recording: of all rows that there will be.
        missing: whether a position was asked for of which nothing was recorded; such positions get the end of text.
    """

    recording: Recording
    missing: Tensor | None = None

    def __call__(self, canvas: Any, ask: Any, cache: Any, state: Any, sampling: Any, step: Any, **more: Any) -> Any:
        """As the denoiser."""
        answer = super().__call__(canvas, ask, cache, state, sampling, step, **more)
        found, taken = self.recording, answer.prediction
        total, row = canvas.tokens.shape[1], sampling.seed
        at = step.clamp(max=found.token.shape[1] - 1)
        asked = taken.confidence > NOTHING
        confidence = torch.where(asked & (step == at)[:, None], found.confidence[row, at, :total], NOTHING)
        lost = asked & (confidence == NOTHING)
        some = lost.any()
        self.missing = some if self.missing is None else self.missing | some
        token = torch.where(lost, canvas.spec.eos[0], found.token[row, at, :total])
        confidence = torch.where(lost, 1.0 / (2.0 + canvas.position), confidence)
        probe = taken.probe if found.probe is None else found.probe[row, at, :total]
        return replace(answer, prediction=replace(taken, token=token, confidence=confidence, probe=probe))


def requests(
    setting: Setting, policy: Any, prompts: Sequence[Sequence[int]], gen_length: int, ignore_eos: bool = False
) -> list[Request]:
    """One for each prompt, whose seed says which it is."""
    cache = registry.cache(setting.cache)
    return [
        Request(i, list(p), gen_length, policy, cache, SamplingParams(seed=i, ignore_eos=ignore_eos))
        for i, p in enumerate(prompts)
    ]


@dataclass
class Finished:
    """A decoding as it goes: the responses of the rows that are done, their forward passes, steps so far, and seconds
    between the beginning and the end of the network in all of them.
    """

    final: dict[int, list[int]] = field(default_factory=dict)
    nfe: dict[int, int] = field(default_factory=dict)
    steps: int = 0
    network: float = 0.0


def drive(model: Denoiser, wanted: Sequence[Request], batch: int) -> Iterator[Finished]:
    """Decode, and tell after each step what is done; the only place here that knows the engine.

    Raises:
        RuntimeError: a request has failed.
    """
    found, engine = Finished(), Engine(model, batch_size=batch)
    for request in wanted:
        engine.add(request)
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Step):
                found.steps += 1
                found.network += event.model_seconds
            elif event.error is not None:
                raise RuntimeError(event.error)
            else:
                found.final[event.request.id], found.nfe[event.request.id] = event.tokens, event.nfe
        yield found


def record(small: Denoiser, setting: Setting, prompts: Sequence[Sequence[int]], gen_length: int) -> Recording:
    """Decode all prompts side by side with the bundled model, and keep what it predicts and commits."""
    model = Listening(small.network, small.spec)
    model.log = []
    policy = Noting(registry.policy(setting.policy))
    done = Finished()
    for done in drive(model, requests(setting, policy, prompts, gen_length), len(prompts)):  # noqa: B007
        pass
    passes = max(done.nfe.values())
    total = max(p.token.shape[1] for _, _, p, _ in model.log)
    device, shape = small.network.device, (len(prompts), passes, total)
    token = torch.zeros(shape, dtype=torch.long, device=device)
    confidence = torch.full(shape, NOTHING, dtype=torch.float64, device=device)
    commit = torch.full(shape, -1, dtype=torch.long, device=device)
    work = torch.zeros(shape[:2], dtype=torch.float64, device=device)
    probed = model.log[0][2].probe is not None
    probe = torch.zeros(shape, dtype=torch.float64, device=device) if probed else None
    for row, step, said, cost in model.log:
        wide = said.token.shape[1]
        token[row, step, :wide], confidence[row, step, :wide] = said.token, said.confidence
        work[row, step] = cost.to(work.dtype)
        if probe is not None:
            probe[row, step, :wide] = said.probe
    for row, step, written in policy.log:
        commit[row, step, : written.shape[1]] = written
    ends = {row: _tokens(ids, small.spec.eos, small.spec.mask) for row, ids in done.final.items()}
    return Recording([list(p) for p in prompts], gen_length, token, confidence, probe, commit, work, done.final, ends,
                     done.nfe)  # fmt: skip


def _tokens(response: Sequence[int], eos: Sequence[int], mask: int) -> int:
    """Tokens before the first end of text, or before what was never filled."""
    return next((i for i, token in enumerate(response) if token in eos or token == mask), len(response))


def stand_in(network: Any, big: Any, small: Any) -> Replaying:
    """The large network with the ids of the bundled model, whose texts it will say."""
    spec = replace(big, mask=small.mask, eos=small.eos, pad=small.pad, shift=small.shift)
    return Replaying(network, spec)


def chosen(policy: str, recording: Recording) -> Any:
    """The policy for a replay: itself, or forced where it reads logits."""
    made = registry.policy(policy)
    return Forced(made, recording) if "logits" in made.needs else made
