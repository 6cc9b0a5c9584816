"""Small decoders of the trainer's own: block after block, and from left to right.

They share no code with the library, so that each can be held against the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from data import Ids
from model import TinyLLaDA
from streams import visible
from torch import Tensor

Memory = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Decoded:
    """Answers without their end tokens, and the forward passes that each took."""

    answers: list[list[int]]
    passes: list[int]


@dataclass
class Canvas:
    """Prompts and masked responses side by side.

    Attributes:
        tokens: ``[B, T]``; end tokens behind a response that is shorter than others.
        starts: ``[B]`` where the responses begin.
        length: positions of a response.
    """

    tokens: Tensor
    starts: Tensor
    length: int
    ids: Ids

    @classmethod
    def of(cls, prompts: list[list[int]], length: int, ids: Ids) -> Canvas:
        starts = torch.tensor([len(prompt) for prompt in prompts])
        tokens = torch.full((len(prompts), int(starts.max()) + length), ids.eos)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
            tokens[row, len(prompt) : len(prompt) + length] = ids.mask
        return cls(tokens, starts, length, ids)

    @property
    def columns(self) -> Tensor:
        return torch.arange(self.tokens.shape[1])

    def real(self) -> Tensor:
        """``[B, T]`` prompt and response."""
        return self.columns < self.starts[:, None] + self.length

    def ended(self) -> Tensor:
        """Rows ``[B]`` with an end token that no masked position stands before, and finished ones."""
        width, response = self.tokens.shape[1], self.real() & (self.columns >= self.starts[:, None])
        end = torch.where(self.tokens.eq(self.ids.eos) & response, self.columns, width).amin(1)
        mask = torch.where(self.tokens == self.ids.mask, self.columns, width).amin(1)
        return (end < mask) | (mask == width)

    def answers(self) -> list[list[int]]:
        """Responses up to the first end token."""
        found = []
        for row, start in enumerate(self.starts.tolist()):
            answer = self.tokens[row, start : start + self.length].tolist()
            found.append(answer[: answer.index(self.ids.eos)] if self.ids.eos in answer else answer)
        return found


def extend(
    model: TinyLLaDA, tokens: Tensor, first: int, real: Tensor, memory: Memory, keep: Tensor | None
) -> tuple[Tensor, Memory]:
    """Logits at ``keep [B, Q]`` (none if None) of tokens ``[B, Q]`` that stand at ``first`` and behind it.

    They see one another where ``real [B, Q]``, and all keys and values of the memory; also returns theirs.
    """
    x, own = model.transformer["wte"](tokens), []
    x = x.bfloat16() if torch.is_autocast_enabled("cpu") else x
    cos, sin = (table[first : first + tokens.shape[1]].to(x.dtype) for table in (model.cos, model.sin))
    past = torch.ones(len(tokens), memory[0][0].shape[2], dtype=torch.bool) if memory else real[:, :0]
    bias = torch.cat((past, real), 1)[:, None, None, :]
    for i, block in enumerate(model.transformer["blocks"]):
        q, k, v = block.qkv(block.attn_norm(x), cos, sin)
        own.append((k, v))
        if memory:
            k, v = torch.cat((memory[i][0], k), 2), torch.cat((memory[i][1], v), 2)
        x = block.feed(x + block.attn_out(block.attend(q, k, v, bias)))
    return (x[:, :0] if keep is None else model.transformer["ff_out"](model.transformer["ln_f"](x[keep]))), own


def joined(memory: Memory, own: Memory) -> Memory:
    """Keys and values of a block behind those before it."""
    if not memory:
        return own
    pairs = zip(memory, own, strict=True)
    return [(torch.cat((old[0], new[0]), 2), torch.cat((old[1], new[1]), 2)) for old, new in pairs]


@torch.no_grad()
def by_block(
    model: TinyLLaDA, ids: Ids, prompts: list[list[int]], gen_length: int, length: int, threshold: float | None = None
) -> Decoded:
    """Greedy answers, block after block; keys and values of finished blocks are cached.

    Args:
        model, ids, prompts: what decodes, its special tokens, what is decoded.
        gen_length: most tokens of a response.
        length: positions of a block; blocks are counted from the first position of the prompt.
        threshold: commit every token of the block above it; None: the most probable one only.
    """
    canvas, passes = Canvas.of(prompts, gen_length, ids), torch.zeros(len(prompts), dtype=torch.long)
    memory: Memory = []
    for lower in range(0, canvas.tokens.shape[1], length):
        block, real = canvas.tokens[:, lower : lower + length], canvas.real()[:, lower : lower + length]
        while True:
            rows = torch.nonzero((block == ids.mask).any(1) & ~canvas.ended()).flatten()
            if not len(rows):
                break
            part, known = block[rows], [(k[rows], v[rows]) for k, v in memory]
            masked = part == ids.mask
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not _exact(model)):
                logits = extend(model, part, lower, real[rows], known, masked)[0].float()
            block[rows] = committed(part, masked, logits, ids, threshold)
            passes[rows] += 1
        if canvas.ended().all():
            break
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not _exact(model)):
            own = extend(model, block, lower, real, memory, None)[1]
        memory = joined(memory, own)
    return Decoded(canvas.answers(), passes.tolist())


def committed(part: Tensor, masked: Tensor, logits: Tensor, ids: Ids, threshold: float | None) -> Tensor:
    """The tokens ``[B, Q]`` with the most probable masked one of each row written, and all above the threshold."""
    logits[:, ids.mask] = -torch.inf
    best, token = logits.softmax(-1).max(-1)
    confidence = torch.zeros(part.shape).masked_scatter(masked, best)
    chosen = torch.zeros_like(masked).scatter_(1, confidence.argmax(1, keepdim=True), True)
    if threshold is not None:
        chosen |= masked & (confidence > threshold)
    return torch.where(chosen, torch.zeros_like(part).masked_scatter(masked, token), part)


def _exact(model: TinyLLaDA) -> bool:
    return model.config["precision"] == "fp32"


@torch.no_grad()
def by_order(model: TinyLLaDA, ids: Ids, prompts: list[list[int]], gen_length: int) -> Decoded:
    """Greedy answers from left to right: one query behind what is known, prompt tokens see one another."""
    canvas, passes = Canvas.of(prompts, gen_length, ids), torch.zeros(len(prompts), dtype=torch.long)
    for step in range(gen_length):
        alive = torch.nonzero(~canvas.ended()).flatten()
        if not len(alive):
            break
        place, starts = canvas.starts[alive] + step, canvas.starts[alive, None]
        columns = torch.arange(int(place.max()) + 1).expand(len(alive), -1)
        known, here = columns < place[:, None], columns == place[:, None]
        rank = torch.where(known, (columns - starts + 1).clamp(min=0), -1)
        limit = torch.where(here, step, rank)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not _exact(model)):
            tokens = canvas.tokens[alive, : columns.shape[1]]
            logits = model(tokens, here, visible(rank, limit, columns)).float()
        logits[:, ids.mask] = -torch.inf
        canvas.tokens[alive, place] = logits.argmax(-1)
        passes[alive] += 1
    return Decoded(canvas.answers(), passes.tolist())
