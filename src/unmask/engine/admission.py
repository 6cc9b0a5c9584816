"""The state of rows that enter a batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from ..constraints.batch import Constraints
from ..core.canvas import Canvas, ModelSpec
from ..core.policy import Policy
from ..core.protocols import Sampling
from ..core.state import row_bytes
from ..models.denoiser import Denoiser
from .loop import State, start
from .request import Request

_LOG = logging.getLogger(__name__)


def fresh_state(model: Denoiser, requests: Sequence[Request]) -> State:
    """The state of requests with one policy and cache before their first forward pass."""
    device, spec = model.network.device, requests[0].policy.view(model.spec)
    rooms = [r.room(model.spec) for r in requests]
    canvas = Canvas.blank(
        [r.prompt for r in requests],
        [r.gen_length for r in requests],
        spec,
        eos_stop=[not r.params.ignore_eos for r in requests],
        fixed=[r.fixed for r in requests],
        rooms=rooms,
        device=device,
    ).widened(spare_columns(requests[0].policy, rooms))
    return start(model, requests[0].cache, requests[0].policy, canvas, _sampling(requests, spec, device))


def state_bytes(model: Denoiser, request: Request, width: int = 0) -> int:
    """Bytes of the state of a row, on a canvas of so many positions at least; 0 of a policy that cannot begin, which
    ends with what is wrong when it enters.
    """
    longer = request
    if (more := width - len(request.prompt) - request.room(model.spec)) > 0:
        longer = replace(request, prompt=[*request.prompt, *[model.spec.pad] * more], most=request.longest(model.spec))
    try:
        return row_bytes(fresh_state(model, [longer]), request.policy.reuses)
    except Exception:  # whatever a policy does
        _LOG.debug("%s cannot begin", request.policy, exc_info=True)
        return 0


def spare_columns(policy: Policy, rooms: Iterable[int]) -> int:
    """Columns behind the longest row that probes may take: a forward pass probes positions of the response alone, of
    which each row has as many as ``rooms`` say.
    """
    return min(policy.probes, max(rooms))


def _sampling(requests: Sequence[Request], spec: ModelSpec, device: torch.device) -> Sampling:
    params = [r.params for r in requests]
    late = [p.late_eos for p in params]
    return Sampling(
        torch.tensor([p.temperature for p in params], device=device, dtype=torch.float64),
        torch.tensor([p.top_p for p in params], device=device, dtype=torch.float64),
        torch.tensor([min(p.top_k, spec.vocab) for p in params], device=device),
        torch.tensor([p.seed or 0 for p in params], device=device),
        _ids([list(map(int, p.suppress)) for p in params], device),
        _ids([spec.eos if r.inside else () for r in requests], device),
        torch.tensor(late, device=device),
        Constraints.of([r.constraint for r in requests], [r.state for r in requests], device),
        samples=any(p.temperature > 0 for p in params),
        filters=any(p.top_k > 0 or p.top_p < 1 for p in params),
        delays=any(late),
    )


def _ids(values: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """``[B, K]`` ids plus 1, K the most of a row; 0 behind a row's own."""
    most = max(map(len, values))
    return torch.tensor([[i + 1 for i in own] + [0] * (most - len(own)) for own in values], device=device).long()
