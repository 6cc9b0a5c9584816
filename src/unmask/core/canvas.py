"""The canvas: the text of every row of a batch, and all that can be derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import RequestError
from .state import PER_POSITION

NO_MASK = -1
"""Stands where a canvas is open in a model without a mask token: no id, nothing that a network is ever given."""


@dataclass(frozen=True)
class ModelSpec:
    """What decoding must know about a checkpoint; the only owner of special ids.

    Attributes:
        mask: id of the mask token; never sampled, never accepted in a prompt. ``NO_MASK``: the model denoises uniform
            noise and has none; what the network reads at open positions is for the policy to say (``Ask.draft``).
        eos: ids that end a response.
        pad: id behind the end of short rows.
        vocab: size of the logits.
        limit: ids from here on are unknown to the tokenizer and are never sampled.
        unknown: ids below ``limit`` that are unknown to the tokenizer and are never sampled; none in most.
        block: positions of a block, of models that fill one after the other; None: of other models.
        context: most positions (prompt + response) the model was made for.
        shift: whether position i is predicted by the network output at i-1 (Dream).
        tokenizer: folder of the tokenizer that the ids belong to; None where the checkpoint has none.
    """

    mask: int
    eos: tuple[int, ...]
    pad: int
    vocab: int
    limit: int
    context: int
    shift: bool = False
    tokenizer: str | None = None
    unknown: tuple[int, ...] = ()
    block: int | None = None

    def room(self, gen_length: int) -> int:
        """Positions that a response of so many tokens takes: whole blocks where the model has no mask token, for it is
        given whole ones. What is too much is cut off when the response is done.
        """
        if self.mask != NO_MASK or self.block is None:
            return gen_length
        return -(-gen_length // self.block) * self.block


@dataclass(frozen=True)
class Update:
    """What a policy decided, all ``[B, T]``: ``token`` is read where ``write``; ``remask`` turns back into masks."""

    write: Tensor
    token: Tensor
    remask: Tensor | None = None


@dataclass(frozen=True)
class Canvas:
    """Rows of text, left-aligned, padded at the end. Immutable: :meth:`apply` returns the next one.

    Attributes:
        tokens: ``[B, T]`` ids.
        prompt: ``[B]`` prompt lengths.
        length: ``[B]`` prompt + response lengths.
        eos_stop: ``[B]`` whether a row is finished once its response has an end of text with no mask before it.
        fixed: ``[B, T]`` positions of the response that were given; no update touches them.
        spec: the model's ids.
    """

    tokens: Tensor = field(metadata=PER_POSITION)
    prompt: Tensor
    length: Tensor
    eos_stop: Tensor
    fixed: Tensor = field(metadata=PER_POSITION)
    spec: ModelSpec

    @staticmethod
    def blank(
        prompts: Sequence[Sequence[int]],
        lengths: Sequence[int],
        spec: ModelSpec,
        *,
        eos_stop: bool | Sequence[bool] = True,
        fixed: Sequence[Mapping[int, int]] | None = None,
        device: torch.device | str = "cpu",
    ) -> Canvas:
        """One row per prompt, followed by ``lengths[i]`` masks, some of which ``fixed[i]`` replaces: {position in the
        response: id}.

        Nothing is checked: :func:`check_request` does that, once for each request.
        """
        given = [{}] * len(prompts) if fixed is None else fixed
        size = [len(p) + n for p, n in zip(prompts, lengths, strict=True)]
        tokens = torch.full((len(prompts), max(size)), spec.pad, dtype=torch.long)
        kept = torch.zeros_like(tokens, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
            tokens[i, len(prompt) : size[i]] = spec.mask
            at = torch.tensor(list(given[i]), dtype=torch.long) + len(prompt)
            tokens[i, at], kept[i, at] = torch.tensor(list(given[i].values()), dtype=torch.long), True
        stop = [eos_stop] * len(prompts) if isinstance(eos_stop, bool) else list(eos_stop)
        return Canvas(
            tokens.to(device),
            torch.tensor([len(p) for p in prompts], device=device),
            torch.tensor(size, device=device),
            torch.tensor(stop, device=device),
            kept.to(device),
            spec,
        )

    @cached_property
    def position(self) -> Tensor:
        """``[1, T]`` 0, 1, 2, ..."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)[None]

    @cached_property
    def valid(self) -> Tensor:
        """``[B, T]`` positions that belong to the row."""
        return self.position < self.length[:, None]

    @cached_property
    def response(self) -> Tensor:
        """``[B, T]`` positions behind the prompt."""
        return self.valid & (self.position >= self.prompt[:, None])

    @cached_property
    def closing(self) -> Tensor:
        """``[B, T]`` positions of the response where an end of text ends it: the last fixed token and what follows."""
        last = torch.where(self.fixed, self.position, 0).amax(1, keepdim=True)
        return self.response & (self.position >= last)

    @cached_property
    def eos_at(self) -> Tensor:
        """``[B]`` position of the response's end of text; T where there is none."""
        return self.first(self.is_eos(self.tokens) & self.closing)

    def is_eos(self, tokens: Tensor) -> Tensor:
        """Which ``tokens`` end a text."""
        ends = tokens == self.spec.eos[0]
        for eos in self.spec.eos[1:]:
            ends = ends | (tokens == eos)
        return ends

    @cached_property
    def masked(self) -> Tensor:
        """``[B, T]`` masks still to be filled; none in a row that has reached its end of text."""
        masks = (self.tokens == self.spec.mask) & self.valid
        ended = self.eos_stop & (self.eos_at < self.first(masks))
        return masks & ~ended[:, None]

    @cached_property
    def done(self) -> Tensor:
        """``[B]`` rows with nothing left to fill."""
        return ~self.masked.any(1)

    @cached_property
    def frontier(self) -> Tensor:
        """``[B]`` position of the first mask to be filled; T in finished rows."""
        return self.first(self.masked)

    def first(self, mask: Tensor) -> Tensor:
        """``[B]`` first true position of a ``[B, T]`` mask; T where there is none."""
        return torch.where(mask, self.position, mask.shape[1]).amin(1)

    def block_start(self, size: int | None) -> Tensor:
        """``[B]`` first position of the current block, which holds the frontier; blocks count from the prompt."""
        if size is None:
            return self.prompt
        return self.prompt + (self.frontier - self.prompt).clamp(min=0) // size * size

    def block(self, size: int | None) -> Tensor:
        """``[B, T]`` the current block of ``size`` positions (None: the whole response); empty in finished rows."""
        low = self.block_start(size)[:, None]
        inside = self.valid & (self.position >= low) & ~self.done[:, None]
        return inside if size is None else inside & (self.position < low + size)

    def places(self, size: int | None) -> Tensor:
        """``[B, Q]`` the positions of the current block in order, T where it has no more; Q = ``size``, or T."""
        place = self.block_start(size)[:, None] + self.position[:, :size]
        return torch.where((place < self.length[:, None]) & ~self.done[:, None], place, self.tokens.shape[1])

    def sources(self, positions: Tensor) -> Tensor:
        """``[B, T]`` the positions whose network output predicts ``positions [B, T]``."""
        return F.pad(positions[:, 1:], (0, 1)) if self.spec.shift else positions

    def targets(self, positions: Tensor) -> Tensor:
        """``[B, T]`` the positions that the network output at ``positions [B, T]`` predicts."""
        return F.pad(positions[:, :-1], (1, 0)) if self.spec.shift else positions

    def widened(self, columns: int) -> Canvas:
        """The canvas with so many more positions of padding behind every row."""
        tokens, fixed = F.pad(self.tokens, (0, columns), value=self.spec.pad), F.pad(self.fixed, (0, columns))
        return replace(self, tokens=tokens, fixed=fixed)

    def apply(self, update: Update) -> Canvas:
        """The canvas after an update."""
        tokens = torch.where(update.write, update.token, self.tokens)
        if update.remask is not None:
            tokens = tokens.masked_fill(update.remask, self.spec.mask)
        after = replace(self, tokens=tokens)
        for name in ("position", "valid", "response", "closing"):  # unchanged by an update
            if name in self.__dict__:
                after.__dict__[name] = self.__dict__[name]
        return after


def check_request(
    row: int, prompt: Sequence[int], gen_length: int, spec: ModelSpec, fixed: Mapping[int, int] | None = None
) -> None:
    """Refuse what no canvas can hold; see :meth:`Canvas.blank`. ``row`` names the prompt in the message.

    Raises:
        RequestError: an empty prompt (allowed in front of fixed tokens, unless the model is shifted), ids out of range
            or the mask id in it, a response length below 1, more positions than the model's context, fixed tokens
            outside the response or at all of its positions.
    """
    if len(prompt) == 0 and (spec.shift or not fixed):
        raise RequestError("the prompt is empty; at least one token is needed", row)
    if gen_length < 1:
        raise RequestError(f"gen_length must be at least 1, got {gen_length}", row)
    if len(prompt) + gen_length > spec.context:
        raise RequestError(
            f"it has {len(prompt)} tokens and gen_length is {gen_length}: together "
            f"{len(prompt) + gen_length}, but the model's context is {spec.context}",
            row,
        )
    if len(prompt):
        _check_ids(row, "it", prompt, spec)
    if fixed:
        _check_ids(row, "fixed", list(fixed.values()), spec)
        odd = [at for at in fixed if not 0 <= at < gen_length]
        if odd:
            raise RequestError(
                f"fixed has the position {odd[0]}; accepted are 0 to {gen_length - 1}, "
                "counted from the start of the response",
                row,
            )
        if len(fixed) == gen_length:
            raise RequestError(f"fixed leaves nothing to decode: all {gen_length} tokens are given", row)


def _check_ids(row: int, name: str, ids: Sequence[int], spec: ModelSpec) -> None:
    low, high = min(ids), max(ids)
    if low < 0 or high >= spec.vocab:
        raise RequestError(f"{name} has the id {low if low < 0 else high}; accepted are 0 to {spec.vocab - 1}", row)
    if spec.mask in ids:
        raise RequestError(f"{name} contains the mask id {spec.mask}; masks are only allowed in the response", row)
