"""The exploratory phase of SlowFast Sampling: where does the span end, and is that stable?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...core.canvas import Canvas
from ...core.pick import at_least
from ...core.protocols import Prediction
from ...core.state import PER_POSITION
from .settings import Settings


@dataclass(frozen=True)
class SlowFastState:
    """One value per row unless said otherwise.

    Attributes:
        start: ``[B]`` first position of the cycle, -1 before a block's first cycle.
        end: ``[B]`` one behind the span, meaningful once ``settled``.
        settled: ``[B]`` the stability test has passed in this cycle.
        slow: ``[B]`` exploratory forward passes of this cycle.
        fast: ``[B]`` accelerated forward passes of this cycle; -1 in the exploratory phase.
        ends: ``[B, window]`` last candidates for the end of the span, in positions of the response, newest last.
        signal: ``[B, window]`` last values of the convergence signal.
        confidence: ``[B, T]`` of the forward pass before (for the signal ``kl``); 0 where unknown.
        skipped: ``[B]`` forward passes of the schedule left out before the next one.
    """

    start: Tensor
    end: Tensor
    settled: Tensor
    slow: Tensor
    fast: Tensor
    ends: Tensor
    signal: Tensor
    confidence: Tensor = field(metadata=PER_POSITION)
    skipped: Tensor


def explore(
    settings: Settings, canvas: Canvas, prediction: Prediction, state: SlowFastState, start: Tensor, high: Tensor
) -> SlowFastState:
    """The state with this forward pass's candidate noted, for rows in the slow phase whose span is not settled."""
    confidence, slow = prediction.confidence, state.fast < 0
    looking = slow & ~state.settled
    step = state.slow + slow
    far = torch.where(at_least(confidence, settings.tau_min), canvas.position + 1, 0).amax(1)
    candidate = torch.minimum(torch.where(far > 0, far, start + 1), high) - canvas.prompt
    ends = torch.where(looking[:, None], _push(state.ends, candidate.double()), state.ends)
    known = torch.arange(settings.window, device=step.device) >= settings.window - step[:, None]
    signal, seen = _signal(settings, prediction, state, ends * known, step)
    limit = settings.force_after or settings.k_max
    stable = (step >= settings.window) | settings.from_zeros
    stable = stable & _stable(settings, signal) & (settings.force_after is None)
    settles = looking & (stable | (step >= limit))
    mean = (ends * known).sum(1) / (settings.window if settings.from_zeros else known.sum(1).clamp(min=1))
    if settings.endpoint == "last_or_rounded":
        mean = mean.round().clamp(min=1)  # halves to the even number of response positions
    end = mean.long() if settings.endpoint == "mean" else torch.where(stable, candidate, mean.long())
    return replace(
        state,
        end=torch.where(settles, end + canvas.prompt, state.end),
        settled=state.settled | settles,
        slow=step,
        ends=ends,
        signal=signal,
        confidence=seen,
    )


def _stable(settings: Settings, history: Tensor) -> Tensor:
    """``[B]`` the variance over the history, or the newest value (kl), against ``sigma2``."""
    if settings.signal == "kl":
        return history[:, -1] < settings.sigma2
    if settings.variance == "sample":
        spread = history.var(1) if settings.window > 1 else torch.zeros_like(history[:, 0])
        return spread <= settings.sigma2
    return history.var(1, correction=0) < settings.sigma2


def _signal(
    settings: Settings, prediction: Prediction, state: SlowFastState, ends: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """The history ``[B, window]`` whose spread tells stability, and the confidences to remember."""
    if settings.signal == "endpoint":
        return ends, state.confidence
    asked = prediction.confidence > -torch.inf
    if prediction.entropy is not None:
        value = (prediction.entropy * asked).sum(1).double() / asked.sum(1).clamp(min=1)
        return _push(state.signal, value), state.confidence
    now = torch.where(asked, prediction.confidence, 0.0)
    both = asked & (state.confidence > 0)
    p, q = _normalised(now, both), _normalised(state.confidence, both)
    value = torch.where(both, p * (p / q).log(), 0.0).sum(1)
    return _push(state.signal, torch.where(step > 1, value, torch.inf)), now


def _push(history: Tensor, value: Tensor) -> Tensor:
    return torch.cat([history[:, 1:], value[:, None]], 1)


def _normalised(value: Tensor, mask: Tensor) -> Tensor:
    kept = torch.where(mask, value, 0.0)
    return torch.where(mask, kept / kept.sum(1, keepdim=True), 1.0)
