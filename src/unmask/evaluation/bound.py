"""Likelihoods of a masked diffusion model: LLaDA's bound (arXiv 2502.09992, eq. 6), sampled or exact.

With l of a continuation's L tokens masked, l uniform in 1 ... L and the mask uniform among those of that size, the
expectation of L/l * sum of log p(masked token | context, tokens not masked) is a lower bound of log p(continuation).
The probabilities are those that decoding uses: ids that are never said have none.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import registry
from ..core.canvas import NO_MASK, Canvas, Update
from ..core.errors import RequestError
from ..core.pick import best, top
from ..core.predict import uniform
from ..core.protocols import Ask, Prediction, Sampling
from ..core.state import select
from ..models.denoiser import Denoiser

_LOGITS_AT_ONCE = 1 << 27  # elements of [masked positions, vocabulary] in one forward: 512 MiB in float32


@dataclass(frozen=True)
class Pair:
    """Ids of a ``context`` (not empty) and of the ``continuation`` whose likelihood is wanted."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)


@dataclass(frozen=True)
class Bound:
    """The bound of one pair: ``value`` in nats, ``masks`` that were evaluated for it, ``positions`` they had."""

    value: float
    masks: int
    positions: int


def masks_of(pair: Pair, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Masks ``[N, L]`` over a continuation and weights ``[N]``: the bound is the sum of weight * log p over them.

    All masks where there are no more of them than ``samples``, else :func:`sampled`. The noise is a function of the
    seed and the context: the answers to one question share it, whatever they are batched with.
    """
    length = len(pair.continuation)
    if (samples + 1).bit_length() > length:  # 2**L - 1 <= samples
        return every(length)
    digest = hashlib.sha256(json.dumps([seed, pair.context]).encode()).digest()
    return sampled(length, samples, int.from_bytes(digest[:8], "big", signed=True))


def every(length: int) -> tuple[Tensor, Tensor]:
    """All masks ``[2**L - 1, L]`` of at least one position, with weights: 1/L * (L choose l)**-1 * L/l each."""
    masks = (torch.arange(1, 1 << length)[:, None] >> torch.arange(length) & 1).bool()
    weight = torch.tensor([0.0] + [1 / (n * math.comb(length, n)) for n in range(1, length + 1)], dtype=torch.float64)
    return masks, weight[masks.sum(1)]


def sampled(length: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random masks, equal ones counted once: at most ``[samples, L]``, with weights: how often / samples * L/l.

    Each number of masked positions is uniform in 1 ... L; together they are spread evenly over that range (systematic
    sampling, as LLaDA's evaluation does within a batch), which leaves less to chance and the expectation as it is.
    """
    index = torch.arange(samples)
    own = torch.full_like(index, seed)
    offset = uniform(own[:1], index[:1], index[:1], 1)[0, 0]
    count = 1 + ((offset + index / samples) % 1.0 * length).long().clamp(max=length - 1)
    drawn = top(uniform(own, index + 1, torch.zeros_like(index), length), count)
    masks, often = torch.unique(drawn, dim=0, return_counts=True)
    return masks, often.double() / samples * length / masks.sum(1)


def bounds(
    denoiser: Denoiser, pairs: Sequence[Pair], samples: int, seed: int, batch_size: int, guidance: float = 0.0
) -> Iterator[tuple[int, Bound]]:
    """The bound of each pair, as they are finished, longest first: (index, bound).

    Args:
        denoiser: the model.
        pairs: contexts and continuations.
        samples: most masks for each (mc_num).
        seed: of the noise (mc_seed).
        batch_size: most rows in a forward. Does not change the masks.
        guidance: classifier-free guidance scale, as in :class:`unmask.models.denoiser.Denoiser`; 0: off.
    """
    left: Counter[int] = Counter()
    total: dict[int, float] = {}
    for batch in _batches(denoiser, pairs, samples, seed, batch_size, left):
        rows = list({_key(line): line for line in batch}.values())  # what differs in its targets alone is run once
        answers = dict(zip(map(_key, rows), _logits(denoiser, rows, guidance), strict=True))
        for line in batch:
            logits = answers[_key(line)]
            target = torch.tensor(line.pair.continuation)[line.mask].to(logits.device)
            chosen = logits.gather(1, target[:, None])[:, 0].double() - logits.logsumexp(-1).double()
            total[line.index] = total.get(line.index, 0.0) + line.weight * float(chosen.sum())
            left[line.index] -= 1
            if not left[line.index]:
                yield line.index, Bound(total.pop(line.index), line.of, line.of * len(line.pair))
    yield from ((i, Bound(0.0, 0, 0)) for i, pair in enumerate(pairs) if not pair.continuation)


def greedy(denoiser: Denoiser, pairs: Sequence[Pair], batch_size: int, guidance: float = 0.0) -> list[bool]:
    """Whether decoding one most confident token a forward, in any order, gives each continuation (LLaDA's evaluation).

    A row leaves with the first token that differs.
    """
    found = [True] * len(pairs)
    order = sorted((i for i, p in enumerate(pairs) if p.continuation), key=lambda i: -len(pairs[i]))
    for at in range(0, len(order), batch_size):
        here = torch.tensor(order[at : at + batch_size])
        canvas, target = _blank(denoiser, [pairs[i] for i in here.tolist()])
        while True:
            told = _answer(denoiser, canvas, guidance, frozenset())
            update = Update(best(told.confidence), told.token)
            wrong = (update.write & (told.token != target)).any(1)
            canvas = canvas.apply(update)
            for i in here[wrong.cpu()].tolist():
                found[i] = False
            stay = (~wrong & ~canvas.done).nonzero()[:, 0]
            if not len(stay):
                break
            canvas, target, here = select(canvas, stay.tolist()), target[stay], here[stay.cpu()]
    return found


@dataclass(frozen=True)
class _Line:
    """One mask ``[L]`` of the pair ``index``, which has ``of`` of them."""

    index: int
    pair: Pair
    mask: Tensor
    weight: float
    of: int


def _key(line: _Line) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input that a mask makes."""
    seen = zip(line.pair.continuation, line.mask.tolist(), strict=True)
    return line.pair.context, tuple(-1 if hidden else token for token, hidden in seen)


def _batches(
    denoiser: Denoiser, pairs: Sequence[Pair], samples: int, seed: int, batch_size: int, left: Counter[int]
) -> Iterator[list[_Line]]:
    """All masks of all pairs, those of one forward together; ``left`` counts what is still to come of each pair."""
    most = max(1, _LOGITS_AT_ONCE // denoiser.network.arch.vocab)
    batch: list[_Line] = []
    keys: set[object] = set()
    lines = 0
    for index in sorted(range(len(pairs)), key=lambda i: (-len(pairs[i]), pairs[i].context, i)):
        pair = pairs[index]
        masks, weights = masks_of(pair, samples, seed) if pair.continuation else (torch.empty(0, 0), torch.empty(0))
        left[index] = len(masks)
        for mask, weight in zip(masks, weights.tolist(), strict=True):
            line = _Line(index, pair, mask, weight, len(masks))
            key, count = _key(line), int(mask.sum())
            if batch and key not in keys and (len(keys) == batch_size or lines + count > most):
                yield batch
                batch, keys, lines = [], set(), 0
            lines += 0 if key in keys else count
            keys.add(key)
            batch.append(line)
    if batch:
        yield batch


def _logits(denoiser: Denoiser, rows: Sequence[_Line], guidance: float) -> Sequence[Tensor]:
    """Logits ``[l, V]`` of each row's masked positions."""
    canvas, tokens = _blank(denoiser, [line.pair for line in rows])
    shown = torch.zeros_like(canvas.valid)
    for i, line in enumerate(rows):
        at = len(line.pair.context)
        shown[i, at : at + len(line.mask)] = ~line.mask.to(shown.device)
    told = _answer(denoiser, canvas.apply(Update(shown, tokens)), guidance, frozenset({"logits"}))
    assert told.logits is not None
    return torch.split(told.logits, [int(line.mask.sum()) for line in rows])


def _blank(denoiser: Denoiser, pairs: Sequence[Pair]) -> tuple[Canvas, Tensor]:
    """The contexts with masks behind them, and ``[B, T]`` the tokens that belong there.

    Raises:
        RequestError: a model without a mask token, or one that decodes block after block.
    """
    if denoiser.spec.mask == NO_MASK:
        raise RequestError(
            "a likelihood is bounded by masking parts of the text, but this model has no mask token; tasks that "
            "generate can be scored"
        )
    if denoiser.spec.block is not None:
        raise RequestError(
            "a likelihood is bounded by masking any parts of the text, but this model decodes blocks of "
            f"{denoiser.spec.block} tokens in order; tasks that generate can be scored"
        )
    lengths, device = [len(p.continuation) for p in pairs], denoiser.network.device
    canvas = Canvas.blank([p.context for p in pairs], lengths, denoiser.spec, eos_stop=False, device=device)
    tokens = canvas.tokens.clone()
    for i, pair in enumerate(pairs):
        tokens[i, len(pair.context) : len(pair)] = torch.tensor(pair.continuation, device=device)
    return canvas, tokens


def _answer(denoiser: Denoiser, canvas: Canvas, guidance: float, needs: frozenset[str]) -> Prediction:
    """A forward without any cache, greedy."""
    cache, zero = registry.cache("none"), torch.zeros_like(canvas.prompt)
    sampling = Sampling(zero.double(), zero.double() + 1, zero, zero, samples=False, filters=False)
    states = denoiser.init(canvas, cache, guidance)
    ask = Ask(canvas.masked)
    return denoiser(canvas, ask, cache, states, sampling, zero, needs=needs, guidance=guidance).prediction
