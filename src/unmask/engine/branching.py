"""Several canvases of a row in one forward pass: they run as lines of the batch, and the row goes on from one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas, Update
from ..core.policy import Policy
from ..core.protocols import Ask
from ..core.state import picked, repeated, slabs
from ..models.denoiser import Answer, Denoiser


def forward(model: Denoiser, cache: Cache, policy: Policy, state: Any, ask: Ask) -> Answer:
    """One forward pass of the rows of ``state``, or of all canvases of each that the ask has.

    What a row holds is lent to each of its canvases; its noise depends on the row alone, or on the ask's counter.
    """
    more: dict[str, Any] = {"needs": policy.needs | cache.needs, "guidance": policy.guidance}
    held, sampling, nfe, forks = state.cache, state.sampling, state.record.nfe, ask.forks
    if forks is None:
        return model(state.canvas, ask, cache, held, sampling, nfe, **more)
    many = forks.count
    nfe = repeated(nfe, many) if forks.step is None else forks.step
    return model(forks.canvas, ask, cache, repeated(held, many), repeated(sampling, many), nfe, **more)


def settled(canvas: Canvas, ask: Ask, answer: Answer, update: Update) -> tuple[Canvas, Ask, Answer]:
    """What is left of the rows' canvases: the one each row goes on from, what was asked and answered of it.

    All copies of what the rows hold become those of that canvas. Its window is the row's own and that one's; work, and
    layers that have computed a position, are those of all canvases together.
    """
    if ask.forks is None:
        return canvas, ask, answer
    assert update.branch is not None
    assert answer.touched is not None
    rows, many = len(canvas.tokens), ask.forks.count
    line = torch.arange(rows, device=update.branch.device) * many + update.branch
    for slab in slabs(answer.state):
        slab.share(line, answer.touched)
    after, forks = picked(answer.state, line), ask.forks
    left = replace(canvas, tokens=forks.canvas.tokens[line])
    window = ask.window[line] | ask.window[::many]
    new = left.tokens != canvas.tokens
    told = answer.prediction.of(line)
    told = replace(told, confidence=torch.where(new, forks.sure[line], told.confidence))
    if told.entropy is not None:  # of a draft not known; at least this, where it was the likeliest token
        least = -forks.sure[line].clamp(min=torch.finfo(torch.float64).tiny).log()
        told = replace(told, entropy=torch.where(new, least.to(told.entropy.dtype), told.entropy))
    work, computed = answer.work.view(rows, many).sum(1), partial(_summed, answer, many)
    return (
        left,
        replace(picked(replace(ask, forks=None), line), window=window),
        replace(answer, prediction=told, state=after, work=work, computed=computed, touched=None),
    )


def joined(canvas: Canvas, left: Canvas, update: Update) -> Update:
    """The update of a row's own canvas that does what ``update`` does to the one that it goes on from."""
    if update.branch is None:
        return update
    new = left.tokens != canvas.tokens
    token = torch.where(update.write, update.token, left.tokens)
    return replace(update, write=update.write | new, token=token, branch=None)


def _summed(answer: Answer, many: int) -> Tensor:
    computed = answer.computed()
    return computed.view(-1, many, computed.shape[1]).sum(1)
