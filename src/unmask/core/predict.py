"""From logits to a proposed token and its confidence, per position."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .canvas import NO_MASK, Canvas, ModelSpec
from .protocols import Ask, Sampling, Search

_LATE = 1e-9  # factor of the confidence of an end of text that shall come last
_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed integer
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685  # splitmix64's multipliers, signed


def forbid(logits: Tensor, spec: ModelSpec) -> Tensor:
    """Give the mask id and ids that the tokenizer does not know probability zero, in place."""
    if spec.mask != NO_MASK:
        logits[:, spec.mask] = -torch.inf
    if spec.limit < logits.shape[1]:
        logits[:, spec.limit :] = -torch.inf
    if spec.unknown:
        logits.index_fill_(1, _ids(spec.unknown, logits.device), -torch.inf)
    return logits


@lru_cache(maxsize=8)
def _ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(ids, device=device)


def suppress(logits: Tensor, sampling: Sampling, canvas: Canvas, row: Tensor, position: Tensor) -> None:
    """Give the tokens that the rows' requests suppress probability zero, in place.

    Args:
        logits: ``[N, V]``, the mask id forbidden.
        sampling: ``[B]`` parameters.
        canvas: the rows.
        row, position: ``[N]`` batch row and absolute position of each line of logits.
    """
    if sampling.suppress is not None and sampling.suppress.shape[1]:
        _silence(logits, sampling.suppress[row], canvas.spec)
    if sampling.inside is not None and sampling.inside.shape[1]:
        _silence(logits, sampling.inside[row] * ~canvas.closing[row, position][:, None], canvas.spec)


def steer(logits: Tensor, ask: Ask, sampling: Sampling, canvas: Canvas, row: Tensor, position: Tensor) -> None:
    """Change logits as the requests and the policy's ask say, in place; see :func:`suppress`."""
    suppress(logits, sampling, canvas, row, position)
    if ask.penalty:
        _discourage(logits, ask.penalty, canvas, row, position)
    if ask.heat is not None:
        logits.div_(ask.heat.to(logits.dtype)[row, None])


def _discourage(logits: Tensor, penalty: float, canvas: Canvas, row: Tensor, position: Tensor) -> None:
    """Take ``penalty`` off the logit of the token that stands one position before, in the same block of a block model,
    in place; see :func:`suppress`.
    """
    before = canvas.tokens[row, (position - 1).clamp(min=0)].clamp(min=0)
    inside = position - canvas.origin[row] > 0
    if canvas.spec.block is not None:
        inside = inside & ((position - canvas.origin[row]) % canvas.spec.block > 0)
    logits.scatter_add_(1, before[:, None], (inside * -penalty)[:, None].to(logits.dtype))


def _silence(logits: Tensor, ids: Tensor, spec: ModelSpec) -> None:
    """``ids [N, K]`` plus 1; those of 0 become the mask id, which is forbidden anyway, or change nothing."""
    if spec.mask != NO_MASK:
        logits.scatter_(1, torch.where(ids > 0, ids - 1, spec.mask), -torch.inf)
    else:
        silent = torch.zeros(len(ids), logits.shape[1] + 1, dtype=torch.bool, device=ids.device).scatter_(1, ids, True)
        logits.masked_fill_(silent[:, 1:], -torch.inf)


def read(
    logits: Tensor, sampling: Sampling, needs: frozenset[str], row: Tensor, position: Tensor, step: Tensor
) -> dict[str, Tensor]:
    """What a prediction says of some positions: ``token``, ``confidence`` and measures, ``[N]``; ``logits [N, V]``.

    Args:
        logits: ``[N, V]``.
        sampling: ``[B]`` parameters.
        needs: see :class:`unmask.core.protocols.Policy`.
        row, position, step: ``[N]`` batch row, absolute position and the row's own step of each line of logits.
    """
    source = logits
    if not hot(sampling, needs):
        token, confidence = likeliest(logits)
    else:
        tempered = temper(logits, sampling, row)
        token, confidence = sample(logits, tempered, sampling, row, position, step)
        if "tempered" in needs:
            source = tempered
            confidence = source.softmax(-1).gather(-1, token[:, None])[:, 0]
    found = {"token": token, "confidence": confidence}
    found |= {name: measure(logits if name == "gap" else source) for name, measure in MEASURES.items() if name in needs}
    return found | {"logits": source} if "logits" in needs else found


def choose(
    logits: Tensor, canvas: Canvas, sampling: Sampling, row: Tensor, position: Tensor, step: Tensor
) -> dict[str, Tensor]:
    """``token`` and ``confidence`` as :func:`read` has them, of accepted texts in rows that have a constraint.

    Args:
        logits: ``[N, V]``.
        canvas: the rows.
        sampling: ``[B]`` parameters.
        row, position: ``[N]`` batch row and absolute position of each line of logits.
        step: ``[B]`` the rows' own steps.
    """
    found = read(logits, sampling, frozenset(), row, position, step[row])
    search = searching(canvas, sampling, frozenset(), row, position, step)
    search.add(slice(0, len(logits)), logits, found)
    search.finish()
    return found


def searching(
    canvas: Canvas, sampling: Sampling, needs: frozenset[str], row: Tensor, position: Tensor, step: Tensor
) -> Search:
    """The search for accepted texts in one forward pass, which does nothing where no row has a constraint; arguments as
    those of :func:`choose`.
    """
    bound = sampling.bound
    return Nothing() if bound is None else bound.search(canvas, sampling, needs, row, position, step)


class Nothing:
    """The search of rows without a constraint."""

    def add(self, piece: slice, logits: Tensor, read: dict[str, Tensor]) -> None:
        """Nothing is noted."""

    def finish(self) -> None:
        """Nothing is replaced."""


def delayed(canvas: Canvas, token: Tensor, confidence: Tensor, sampling: Sampling) -> Tensor:
    """Confidences ``[B, T]`` of predicted tokens, next to 0 for an end of text where the row wants that last."""
    if not sampling.delays or sampling.late_eos is None:
        return confidence
    return torch.where(canvas.is_eos(token) & sampling.late_eos[:, None], confidence * _LATE, confidence)


def hot(sampling: Sampling, needs: frozenset[str]) -> bool:
    """Whether any row needs more than the likeliest tokens of the model's own distribution."""
    return sampling.samples or ("tempered" in needs and sampling.filters)


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy choice: argmax and its softmax probability in float64.

    The probability is 1 / (1 + rest), where rest sums the other tokens' odds against the best. Unlike a softmax in
    float32 it does not saturate at 1 where a model is sure, so confident positions keep their order.

    The probability is NaN where the largest logit is not finite.

    Args:
        logits: ``[N, V]`` floating point.
    """
    top, token = logits.max(-1, keepdim=True)
    odds = (logits - top).exp_().scatter_(-1, token, top * 0.0)  # the best itself: 0, or NaN where it is infinite
    return token[:, 0], 1.0 / (1.0 + odds.sum(-1).double())


def temper(logits: Tensor, sampling: Sampling, row: Tensor) -> Tensor:
    """Log-odds ``[N, V]`` in float64 at each row's temperature, after top-k and top-p; -inf where filtered out.

    Rows at temperature 0 are filtered as at 1. ``row [N]`` is the batch row of each line of logits.
    """
    temperature = sampling.temperature[row]
    temperature = torch.where(temperature > 0, temperature, 1.0)[:, None]
    scaled = (logits.double() - logits.amax(-1, keepdim=True)) / temperature  # at most 0: cannot overflow
    return _filter(scaled, sampling.top_k[row], sampling.top_p[row]) if sampling.filters else scaled


def sample(
    logits: Tensor, tempered: Tensor, sampling: Sampling, row: Tensor, position: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Gumbel-max sampling from what :func:`temper` made of the logits; rows at temperature 0 stay greedy.

    The confidence is the untempered, unfiltered probability of the sampled token (LLaDA, ``low_confidence``).

    Args:
        logits: ``[N, V]``.
        tempered: ``[N, V]``.
        sampling: ``[B]`` parameters.
        row, position, step: ``[N]`` batch row, absolute position and the row's own step of each line of logits.
    """
    greedy, confidence = likeliest(logits)
    hot = sampling.temperature[row] > 0
    noise = gumbel(sampling.seed[row], position, step, logits.shape[1])
    drawn = (tempered + noise).argmax(-1)
    probability = logits.double().softmax(-1).gather(-1, drawn[:, None])[:, 0]
    return torch.where(hot, drawn, greedy), torch.where(hot, probability, confidence)


def margin(logits: Tensor) -> Tensor:
    """``[N]`` lead of the likeliest token's probability over the second's, of ``[N, V]`` logits."""
    top = logits.softmax(-1).topk(2).values
    return top[:, 0] - top[:, 1]


def entropy(logits: Tensor) -> Tensor:
    """``[N]`` entropy in nats of ``[N, V]`` logits (-inf allowed)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)


def gap(logits: Tensor) -> Tensor:
    """``[N]`` lead of the largest of ``[N, V]`` logits over the second."""
    top = logits.topk(2).values
    return top[:, 0] - top[:, 1]


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"entropy": entropy, "margin": margin, "gap": gap}


def _filter(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the k best (0: all), then the smallest set whose probability reaches p; the best token always stays."""
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scaled.shape[1], device=scaled.device)
    drop = (top_k[:, None] > 0) & (rank >= top_k[:, None])
    probability = ordered.masked_fill(drop, -torch.inf).softmax(-1)
    drop |= (probability.cumsum(-1) - probability >= top_p[:, None]) & (top_p[:, None] < 1)
    drop[:, 0] = False
    return scaled.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)


def uniform(seed: Tensor, position: Tensor, step: Tensor, size: int) -> Tensor:
    """Counter-based noise: ``[N, size]`` float64 in (0, 1), a function of (seed, position, step, column) alone.

    It does not depend on the batch, the device or the order of calls. ``seed``, ``position``, ``step`` are ``[N]``.
    """
    return _uniform(seed, position, step, torch.arange(size, device=seed.device)[None])


def uniform_at(seed: Tensor, position: Tensor, step: Tensor, column: Tensor) -> Tensor:
    """``[N]`` the numbers of :func:`uniform` in one column of each line, ``column [N]``."""
    return _uniform(seed, position, step, column[:, None])[:, 0]


def _uniform(seed: Tensor, position: Tensor, step: Tensor, columns: Tensor) -> Tensor:
    counter = _mix(_mix(_mix(seed + _GOLDEN) ^ position) ^ step)
    bits = _mix(counter[:, None] + (columns + 1) * _GOLDEN) >> 12 & (1 << 52) - 1  # one less than a double's: not 0, 1
    return (bits.double() + 0.5) / (1 << 52)


def gumbel(seed: Tensor, position: Tensor, step: Tensor, size: int) -> Tensor:
    """Standard Gumbel noise, ``[N, size]`` float64, from :func:`uniform`."""
    return -(-uniform(seed, position, step, size).log()).log()


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (Steele, Lea, Flood 2014)."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    return x >> by & (1 << 64 - by) - 1
