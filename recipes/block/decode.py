"""Small decoders of the trainer's own, without a cache: block after block, and from left to right.

They share no code with the library, so that each can be held against the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from data import Ids
from model import TinyLLaDA
from streams import visible
from torch import Tensor


@dataclass(frozen=True)
class Decoded:
    """Answers without their end tokens, and the forward passes that each took."""

    answers: list[list[int]]
    passes: list[int]


def cut(canvas: Tensor, starts: list[int], gen_length: int, ids: Ids) -> list[list[int]]:
    """Responses up to the first end token."""
    answers = []
    for row, start in enumerate(starts):
        answer = canvas[row, start : start + gen_length].tolist()
        answers.append(answer[: answer.index(ids.eos)] if ids.eos in answer else answer)
    return answers


def canvas_of(prompts: list[list[int]], gen_length: int, ids: Ids) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``[B, T]``, where each response starts ``[B]``, and whether a place belongs to it ``[B, T]``."""
    starts = torch.tensor([len(prompt) for prompt in prompts])
    canvas = torch.full((len(prompts), int(starts.max()) + gen_length), ids.eos)
    for row, prompt in enumerate(prompts):
        canvas[row, : len(prompt)] = torch.tensor(prompt)
    columns = torch.arange(canvas.shape[1])
    response = (columns >= starts[:, None]) & (columns < starts[:, None] + gen_length)
    return canvas.masked_fill(response, ids.mask), starts, response


@torch.no_grad()
def by_block(
    model: TinyLLaDA, ids: Ids, prompts: list[list[int]], gen_length: int, length: int, threshold: float | None = None
) -> Decoded:
    """Greedy answers, block after block; ``threshold`` commits every token above it, None the best one only."""
    canvas, starts, response = canvas_of(prompts, gen_length, ids)
    columns = torch.arange(canvas.shape[1])
    block, passes = columns // length, torch.zeros(len(prompts), dtype=torch.long)
    sees = block[None, :] <= block[:, None]
    for lower in range(int(starts.min()) // length * length, canvas.shape[1], length):
        upper = min(lower + length, canvas.shape[1])
        while True:
            open_ = (canvas == ids.mask) & (columns >= lower) & (columns < upper)
            rows = torch.nonzero(open_.any(1) & ~ended(canvas, response, ids)).flatten()
            if not len(rows):
                break
            part, here = canvas[rows, :upper], open_[rows, :upper]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(part, here, sees[None, :upper, :upper]).float()
            logits[:, ids.mask] = -torch.inf
            best, token = logits.softmax(-1).max(-1)
            confidence = torch.zeros(part.shape).masked_scatter(here, best)
            chosen = torch.zeros_like(here).scatter_(1, confidence.argmax(1, keepdim=True), True)
            if threshold is not None:
                chosen |= here & (confidence > threshold)
            canvas[rows, :upper] = torch.where(chosen, torch.zeros_like(part).masked_scatter(here, token), part)
            passes[rows] += 1
    return Decoded(cut(canvas, starts.tolist(), gen_length, ids), passes.tolist())


def ended(canvas: Tensor, response: Tensor, ids: Ids) -> Tensor:
    """Rows ``[B]`` with an end token that no mask stands before."""
    columns, width = torch.arange(canvas.shape[1]), canvas.shape[1]
    first_end = torch.where((canvas == ids.eos) & response, columns, width).amin(1)
    return first_end < torch.where(canvas == ids.mask, columns, width).amin(1)


@torch.no_grad()
def by_order(model: TinyLLaDA, ids: Ids, prompts: list[list[int]], gen_length: int) -> Decoded:
    """Greedy answers from left to right: one query behind what is known, prompt tokens see one another."""
    canvas, starts, response = canvas_of(prompts, gen_length, ids)
    passes, alive = torch.zeros(len(prompts), dtype=torch.long), torch.arange(len(prompts))
    for step in range(gen_length):
        alive = alive[~ended(canvas[alive], response[alive], ids)]
        if not len(alive):
            break
        place, width = starts[alive] + step, int(starts[alive].max()) + step + 1
        columns = torch.arange(width).expand(len(alive), width)
        known, here = columns < place[:, None], columns == place[:, None]
        rank = torch.where(known, (columns - starts[alive, None] + 1).clamp(min=0), -1)
        limit = torch.where(here, step, rank)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(canvas[alive, :width], here, visible(rank, limit, columns)).float()
        logits[:, ids.mask] = -torch.inf
        canvas[alive, place] = logits.argmax(-1)
        passes[alive] += 1
    return Decoded(cut(canvas, starts.tolist(), gen_length, ids), passes.tolist())
