"""What one forward pass did to a response, as plain values: the step events of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..engine.loop import Step

Place = tuple[int, int, float]  # position in the response, token id, confidence


@dataclass(frozen=True)
class Frame:
    """One forward pass of one response; positions count from the first of the response.

    Attributes:
        step: the response's own forward pass, from 0.
        committed: tokens that it wrote.
        remasked: positions that became masked again.
        provisional: predictions at positions that stay masked.
        masked: positions that are masked after it; those behind an end of text do not count.
        length: positions of the response after it.
        phases: what of the policy's notes is true, such as ``slow``.
        notes: the policy's other notes, such as ``start`` and ``end`` of the span it works on.
    """

    step: int
    committed: list[Place]
    remasked: list[int]
    provisional: list[Place]
    masked: int
    length: int
    phases: list[str]
    notes: dict[str, float]


def frames(step: Step, slots: Sequence[int], begins: Sequence[int]) -> dict[int, Frame]:
    """The frames of some rows of a step, by slot; ``begins`` are the lengths of their prompts."""
    at = torch.tensor(slots, device=step.canvas.tokens.device)
    write, masked = step.update.write[at], step.canvas.masked[at]
    gone = step.update.remask[at] if step.update.remask is not None else torch.zeros_like(write)
    open_ = masked & (step.confidence[at] > -torch.inf) & ~gone
    kinds = (write * 1 + gone * 2 + open_ * 4).tolist()
    tokens, sure = step.update.token[at].tolist(), step.confidence[at].double().tolist()
    left, forward, ends = masked.sum(1).tolist(), step.forward[at].tolist(), step.canvas.wanted[at].tolist()
    notes = {name: value[at].tolist() for name, value in step.notes().items()}
    found = {}
    for i, (slot, begin) in enumerate(zip(slots, begins, strict=True)):
        own = {name: values[i] for name, values in notes.items()}
        places = [(p, kind) for p, kind in enumerate(kinds[i]) if kind]
        found[slot] = Frame(
            forward[i],
            [(p - begin, tokens[i][p], sure[i][p]) for p, kind in places if kind & 1 and not kind & 2],
            [p - begin for p, kind in places if kind & 2],
            [(p - begin, tokens[i][p], sure[i][p]) for p, kind in places if kind & 4],
            left[i],
            ends[i] - begin,
            [name for name, value in own.items() if value is True],
            {name: _number(name, value, begin) for name, value in own.items() if not isinstance(value, bool)},
        )
    return found


def _number(name: str, value: Any, begin: int) -> float:
    """A note that is a number; ``start`` and ``end`` are positions."""
    return value - begin if name in ("start", "end") else value  # type: ignore[no-any-return]
