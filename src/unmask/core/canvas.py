"""The canvas: the text of every row of a batch, and all that can be derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

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
        context: most positions (prompt + response) the model was made for.
        shift: whether position i is predicted by the network output at i-1 (Dream).
        block: of block models, positions per block, counted from position 0: a position sees its own block and all
            before it. Of models without a mask token, positions per canvas, counted from the prompt. None: every
            position sees every other.
        whole: whether the last block of a response has its full length in the input, whatever was asked for.
        tokenizer: folder of the tokenizer that the ids belong to; None where the checkpoint has none.
        orders: whether the model was trained to predict in an order of positions (an any-subset model).
        ordered: whether it is decoded so: what was given comes first, then the response from left to right. A filled
            position sees what comes before it, and itself; a masked one is in nobody's sight, and is predicted by a
            mask that sees the filled ones before it.
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
    whole: bool = True
    orders: bool = False
    ordered: bool = False

    def room(self, prompt: int, gen_length: int) -> int:
        """Positions that a response of so many tokens takes behind a prompt of so many: to the end of its last block.
        What is too much is cut off when the response is done.
        """
        if self.block is None or not self.whole:
            return gen_length
        before = 0 if self.mask == NO_MASK else prompt % self.block
        full = -(-(before + gen_length) // self.block) * self.block - before
        return max(gen_length, min(full, self.context - prompt))


@dataclass(frozen=True)
class Update:
    """What a policy decided, ``[B, T]``: ``token`` is read where ``write``; ``remask`` turns back into masks.

    ``hold [B]``: rows whose current block is worked on once more, even if no mask is left in it. None: none.
    ``ahead [B]``: blocks of a block model, behind the current one, that are worked on with it from now on. None: none.
    ``branch [B]``: which of its canvases a row goes on from, 0 its own; the rest is said of that canvas. See
    :class:`~unmask.core.protocols.Forks`. None: there is one only.
    ``grow [B]``: positions by which the response becomes longer at its end from the next forward pass on, negative:
    shorter. New ones are masked, unless they are written at once. None: none.
    ``source [B, T]``: the position from which each token that is written has moved, its own if it has not. None: none
    has moved.
    """

    write: Tensor
    token: Tensor
    remask: Tensor | None = None
    hold: Tensor | None = None
    ahead: Tensor | None = None
    branch: Tensor | None = None
    grow: Tensor | None = None
    source: Tensor | None = None


@dataclass(frozen=True)
class Canvas:
    """Rows of text, left-aligned, padded at the end. Immutable: :meth:`apply` returns the next one.

    Attributes:
        tokens: ``[B, T]`` ids.
        prompt: ``[B]`` prompt lengths.
        length: ``[B]`` prompt + response lengths.
        wanted: ``[B]`` of these, positions that must be filled; what lies behind was not asked for, but fills the last
            block of a block model.
        most: ``[B]`` what ``length`` may become, see :class:`Update`.
        held: ``[B]`` a position that its policy holds the row at, see :class:`Update`; -1: none.
        ahead: ``[B]`` blocks worked on with the current one, see there.
        eos_stop: ``[B]`` whether a row is finished once its response has an end of text with no mask before it.
        fixed: ``[B, T]`` positions of the response that were given; no update touches them.
        spec: the model's ids.
    """

    tokens: Tensor = field(metadata=PER_POSITION)
    prompt: Tensor
    length: Tensor
    wanted: Tensor
    most: Tensor
    held: Tensor
    ahead: Tensor
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
        rooms: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> Canvas:
        """One row per prompt, followed by ``lengths[i]`` masks, some of which ``fixed[i]`` replaces: {position in the
        response: id}; and by as many as fill the last block. ``rooms[i]``: positions that its response may become;
        None: those that it has.

        Nothing is checked: :meth:`unmask.engine.request.Request.check` does that, once for each request.
        """
        given = [{}] * len(prompts) if fixed is None else fixed
        wanted = [len(p) + n for p, n in zip(prompts, lengths, strict=True)]
        size = [len(p) + spec.room(len(p), n) for p, n in zip(prompts, lengths, strict=True)]
        most = size if rooms is None else [len(p) + n for p, n in zip(prompts, rooms, strict=True)]
        tokens = torch.full((len(prompts), max(most)), spec.pad, dtype=torch.long)
        kept = torch.zeros_like(tokens, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
            tokens[i, len(prompt) : size[i]] = spec.mask
            if given[i]:
                at = torch.tensor(list(given[i]), dtype=torch.long) + len(prompt)
                tokens[i, at], kept[i, at] = torch.tensor(list(given[i].values()), dtype=torch.long), True
        stop = [eos_stop] * len(prompts) if isinstance(eos_stop, bool) else list(eos_stop)
        return Canvas(
            tokens.to(device),
            torch.tensor([len(p) for p in prompts], device=device),
            torch.tensor(size, device=device),
            torch.tensor(wanted, device=device),
            torch.tensor(most, device=device),
            torch.full((len(prompts),), -1, device=device),
            torch.zeros(len(prompts), dtype=torch.long, device=device),
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
    def open(self) -> Tensor:
        """``[B, T]`` the masks of rows that have not reached their end of text; a block that is held is filled."""
        masks = (self.tokens == self.spec.mask) & self.valid
        ended = self.eos_stop & (self.eos_at < self.first(masks))
        if self.spec.block is not None:
            ended = ended & (self.held < 0)
        return masks & ~ended[:, None]

    @cached_property
    def masked(self) -> Tensor:
        """``[B, T]`` masks that can be filled now: those ``open``, of a block model those of its current block."""
        if self.spec.block is None:
            return self.open
        return self.open & ~self.past & (self.position < self._limit[:, None])

    @cached_property
    def filled(self) -> Tensor:
        """``[B, T]`` positions of the response that hold a token."""
        return self.response & (self.tokens != self.spec.mask)

    @cached_property
    def next(self) -> Tensor:
        """``[B]`` position of the first mask that must be filled; T where none is left."""
        return self.first(self.open & (self.position < self.wanted[:, None]))

    @cached_property
    def done(self) -> Tensor:
        """``[B]`` rows with nothing left to do."""
        return (self.next == self.tokens.shape[1]) & (self.held < 0)

    @cached_property
    def frontier(self) -> Tensor:
        """``[B]`` position of the first mask to be filled, or where the row is held without one; T in finished rows."""
        if self.spec.block is None:
            return torch.where((self.held < 0) | self.masked.any(1), self.next, self.held)
        return torch.where(self.masked.any(1), self.first(self.masked), self._anchor)

    @cached_property
    def _anchor(self) -> Tensor:
        """``[B]`` a position of the model's current block."""
        return torch.where(self.held < 0, self.next, self.held)

    # --- the blocks of the model, for block models alone

    @cached_property
    def origin(self) -> Tensor:
        """``[B]`` the position that blocks count from."""
        return self.prompt if self.spec.mask == NO_MASK else torch.zeros_like(self.prompt)

    @cached_property
    def rank(self) -> Tensor | None:
        """``[B, T]`` a position sees those of its own rank and of lower ones: the number of its block, or its place in
        the order, 0 where it was given; None where every position sees every other.
        """
        if self.spec.ordered:
            free = self.response & ~self.fixed
            return torch.where(free, free.cumsum(1), 0)
        return None if self.spec.block is None else (self.position - self.origin[:, None]) // self.spec.block

    @cached_property
    def base(self) -> Tensor:
        """``[B]`` first position of the model's current block, which holds the frontier; 0 in other models."""
        size = self.spec.block
        return self.origin if size is None else self.origin + (self._anchor - self.origin) // size * size

    @cached_property
    def _limit(self) -> Tensor:
        """``[B]`` one behind the masks of the model's current block."""
        return self.base + torch.where(self.opening, 1, (self.ahead + 1) * (self.spec.block or 0))

    @cached_property
    def opening(self) -> Tensor:
        """``[B]`` rows of a shifted block model whose next mask begins a block: the block before predicts it, alone."""
        return (self._anchor == self.base) & (self.spec.shift and self.spec.block is not None)

    @cached_property
    def past(self) -> Tensor:
        """``[B, T]`` positions that see final text alone: the model's finished blocks, or in an order all that is
        filled; none in other models.
        """
        if self.spec.ordered:
            return self.valid & (self.tokens != self.spec.mask)
        return self.position < self.base[:, None]

    @cached_property
    def present(self) -> Tensor:
        """``[B, T]`` positions that may be in the input: of a block model its blocks up to the current one."""
        if self.spec.block is None:
            return self.valid
        return self.valid & (self.position < (self._limit - self.opening.long())[:, None])

    # --- the blocks of a policy

    def first(self, mask: Tensor) -> Tensor:
        """``[B]`` first true position of a ``[B, T]`` mask; T where there is none."""
        return torch.where(mask, self.position, mask.shape[1]).amin(1)

    def _grid(self, size: int | None) -> tuple[Tensor, Tensor | int | None]:
        """``[B]`` the start of the current block as it is counted, and its positions; None: to the end of the row.

        Blocks count from the end of the prompt. Those of a block model are parts of its own blocks, of which the first
        may begin with the end of the prompt.
        """
        if self.spec.block is None:
            if size is None:
                return self.prompt, None
            return self.prompt + (self.frontier - self.prompt).clamp(min=0) // size * size, size
        size = min(size or self.spec.block, self.spec.block)
        low = self.base + (self.frontier - self.base) // size * size
        end = torch.minimum(low + size, self.base + self.spec.block)
        return low, torch.where(self.opening, 1, end - low)

    def block_start(self, size: int | None) -> Tensor:
        """``[B]`` first position of the current block, which holds the frontier; none of the prompt."""
        low, _ = self._grid(size)
        if self.spec.block is None:
            return low
        first = self.base + (~self.opening).long() if self.spec.shift else self.base
        return torch.maximum(torch.maximum(low, first), self.prompt)

    def block_end(self, size: int | None) -> Tensor:
        """``[B]`` one behind the current block."""
        low, many = self._grid(size)
        return self.length if many is None else torch.minimum(low + many, self.length)

    def block(self, size: int | None) -> Tensor:
        """``[B, T]`` the current block of ``size`` positions, of a block model at most its own (None: that, or the
        whole response); empty in finished rows.
        """
        low, high = self.block_start(size)[:, None], self.block_end(size)[:, None]
        return (self.position >= low) & (self.position < high) & ~self.done[:, None]

    def cell(self, size: int | None) -> Tensor | None:
        """``[B, T]`` of a block model, the current block, with what the prompt or the block before has filled."""
        if self.spec.block is None:
            return None
        low, _ = self._grid(size)
        return (self.position >= low[:, None]) & (self.position < self.block_end(size)[:, None]) & ~self.done[:, None]

    def places(self, size: int | None) -> Tensor:
        """``[B, Q]`` the positions of the current block in order, T where it has no more; Q = ``size``, or T."""
        place = self.block_start(size)[:, None] + self.position[:, :size]
        return torch.where((place < self.block_end(size)[:, None]) & ~self.done[:, None], place, self.tokens.shape[1])

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
        held = self.held
        if update.hold is not None:
            held = torch.where(update.hold, torch.where(held < 0, self.block_start(None), held), -1)
        after = replace(self, tokens=tokens, held=held, ahead=self.ahead if update.ahead is None else update.ahead)
        if update.grow is not None:
            return after._resized(update.grow, update.write)
        for name in ("position", "valid", "response", "closing"):  # unchanged by an update
            if name in self.__dict__:
                after.__dict__[name] = self.__dict__[name]
        return after

    def resized(self, grow: Tensor) -> Tensor:
        """``[B]`` the length of rows whose responses become longer by ``grow [B]``, or shorter, within their bounds."""
        return torch.minimum(torch.maximum(self.length + grow, self.prompt), self.most)

    def _resized(self, grow: Tensor, written: Tensor) -> Canvas:
        """The canvas with other lengths; new positions that are not ``written [B, T]`` are masked."""
        length = self.resized(grow)
        after = replace(self, length=length, wanted=self.wanted + length - self.length)
        tokens = torch.where(after.valid & ~self.valid & ~written, self.spec.mask, self.tokens)
        return replace(after, tokens=torch.where(after.valid, tokens, self.spec.pad))
