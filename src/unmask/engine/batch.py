"""Continuous batching: requests enter a running batch as others leave it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..core.canvas import Canvas
from ..core.protocols import Cache, Policy, Sampling
from ..models.denoiser import Denoiser
from .loop import State, Step, decode, start


@dataclass(frozen=True)
class Request:
    """One prompt to decode: ids and sampling parameters; ``row`` is the id that steps and results carry."""

    row: int
    prompt: Sequence[int]
    gen_length: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    eos_stop: bool = True


def admit(model: Denoiser, cache: Cache, policy: Policy, requests: Sequence[Request]) -> State:
    """The state of fresh rows, one per request.

    Raises:
        RequestError: see :meth:`unmask.core.canvas.Canvas.blank` and the policy's ``init``.
    """
    device = model.network.device
    canvas = Canvas.blank(
        [r.prompt for r in requests],
        [r.gen_length for r in requests],
        model.spec,
        eos_stop=[r.eos_stop for r in requests],
        device=device,
    )
    sampling = Sampling(
        torch.tensor([r.temperature for r in requests], device=device, dtype=torch.float64),
        torch.tensor([r.top_p for r in requests], device=device, dtype=torch.float64),
        torch.tensor([r.top_k for r in requests], device=device),
        torch.tensor([r.seed for r in requests], device=device),
    )
    return start(model, cache, policy, canvas, sampling, torch.tensor([r.row for r in requests], device=device))


def run(
    model: Denoiser, cache: Cache, policy: Policy, requests: Iterable[Request], batch_size: int
) -> Iterator[tuple[State, Step]]:
    """Decode requests, at most ``batch_size`` at a time; as rows leave, the next requests enter.

    Yields:
        As :func:`unmask.engine.loop.decode`.
    """
    waiting = deque(requests)

    def enter(rows: int) -> State | None:
        fresh = [waiting.popleft() for _ in range(min(batch_size - rows, len(waiting)))]
        return admit(model, cache, policy, fresh) if fresh else None

    return decode(model, cache, policy, None, enter)
