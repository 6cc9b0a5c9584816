"""Continuous batching: requests enter a running batch as others leave it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, check_request
from ..core.errors import RequestError
from ..core.protocols import Cache, Policy, Sampling
from ..models.denoiser import Denoiser
from .loop import Look, State, Step, decode, start


@dataclass(frozen=True)
class Request:
    """One prompt to decode: ids and sampling parameters; ``row`` is the id that steps and results carry.

    ``banned`` ids are never said. ``fixed`` holds tokens of the response that are given, {position in the response:
    id}; an end of text is never said in front of the last of them. ``begin``: where on the canvas the row's text begins
    (None: behind the prompt). ``stop``: texts that the response ends before; see :mod:`unmask.stop`.
    """

    row: int
    prompt: Sequence[int]
    gen_length: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    eos_stop: bool = True
    banned: Sequence[int] = ()
    fixed: Mapping[int, int] = field(default_factory=dict)
    begin: int | None = None
    stop: tuple[str, ...] = ()


def admit(model: Denoiser, cache: Cache, policy: Policy, requests: Sequence[Request]) -> State:
    """The state of fresh rows, one per request.

    Raises:
        RequestError: see :func:`check`.
    """
    check(policy, requests, model.spec)
    device = model.network.device
    canvas = Canvas.blank(
        [r.prompt for r in requests],
        [r.gen_length for r in requests],
        model.spec,
        eos_stop=[r.eos_stop for r in requests],
        fixed=[r.fixed for r in requests],
        device=device,
    )
    sampling = Sampling(
        torch.tensor([r.temperature for r in requests], device=device, dtype=torch.float64),
        torch.tensor([r.top_p for r in requests], device=device, dtype=torch.float64),
        torch.tensor([r.top_k for r in requests], device=device),
        torch.tensor([r.seed for r in requests], device=device),
        _ids([r.banned for r in requests], device),
        _ids([model.spec.eos if r.fixed else () for r in requests], device),
    )
    row, begin = (
        torch.tensor(values, device=device)
        for values in ([r.row for r in requests], [len(r.prompt) if r.begin is None else r.begin for r in requests])
    )
    return start(model, cache, policy, canvas, sampling, row, begin)


def check(policy: Policy, requests: Sequence[Request], spec: ModelSpec) -> None:
    """Refuse what cannot be decoded.

    Raises:
        RequestError: see :func:`unmask.core.canvas.check_request`; banned ids out of range, bans that leave no token,
            tokens given behind a mask to a policy that goes from left to right, or what else the policy refuses.
        ModelError: something else that the policy needs cannot be used.
    """
    limit = min(spec.limit, spec.vocab)
    for request in requests:
        check_request(request.row, request.prompt, request.gen_length, spec, request.fixed)
        wild = [i for i in request.banned if not 0 <= i < spec.vocab]
        if wild:
            raise RequestError(f"banned has the id {wild[0]}; accepted are 0 to {spec.vocab - 1}", request.row)
        inside = bool(request.fixed) and len(request.fixed) <= max(request.fixed)  # a mask in front of a fixed token
        silent = {spec.mask, *request.banned, *(spec.eos if inside else ())}
        if len({i for i in silent if i < limit}) == limit:
            why = ", for an end of text cannot stand in front of given text" if inside else ""
            raise RequestError(f"banned leaves no token to decode with{why}", request.row)
        if request.fixed and getattr(policy, "left_to_right", False):  # a policy needs no base class
            raise RequestError(
                f"{policy.name} decodes from left to right and cannot look at what stands behind a mask: text behind a "
                "gap and fixed tokens need a policy that fills masks in any order, such as slowfast or threshold",
                request.row,
            )
        if hasattr(policy, "check"):  # as above
            try:
                policy.check(request.prompt, request.gen_length, spec)
            except RequestError as error:
                raise error.of(request.row) from None


def _ids(values: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """``[B, K]`` ids plus 1, K the most of a row; 0 behind a row's own."""
    most = max(map(len, values))
    return torch.tensor([[i + 1 for i in own] + [0] * (most - len(own)) for own in values], device=device).long()


def run(
    model: Denoiser,
    cache: Cache,
    policy: Policy,
    requests: Iterable[Request],
    batch_size: int,
    look: Look = lambda state, event: (state, event),
) -> Iterator[tuple[State, Step]]:
    """Decode requests, at most ``batch_size`` at a time; as rows leave, the next requests enter.

    ``look``: see :func:`unmask.engine.loop.decode`.

    Yields:
        As :func:`unmask.engine.loop.decode`.
    """
    waiting = deque(requests)

    def enter(rows: int) -> State | None:
        fresh = [waiting.popleft() for _ in range(min(batch_size - rows, len(waiting)))]
        return admit(model, cache, policy, fresh) if fresh else None

    return decode(model, cache, policy, None, enter, look)
