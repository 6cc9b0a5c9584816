"""Probabilities of alternatives in the gaps of a text, read in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .core.cache import Cache
from .core.canvas import NO_MASK, Canvas, ModelSpec
from .core.errors import RequestError
from .core.protocols import Ask, Sampling
from .core.values import is_list
from .infill import Layout, lay_out
from .models.denoiser import Denoiser
from .text import Text, split_gaps


def score(
    model: Denoiser,
    text: Text | None,
    cache: Cache,
    front: Sequence[int] | None,
    template: str,
    choices: Sequence[object],
) -> list[dict[str, float]]:
    """For each gap of a template the probability of each of the texts that may stand there; they sum to 1.

    That of a text of several tokens is the product of theirs, each read while the others are masked. In a single gap
    texts may differ in length; longer ones are at a disadvantage.

    Args:
        model: the model.
        text: its tokenizer.
        cache: runs the layers.
        front: ids in front of the template; None: nothing.
        template: a text with gaps ``[MASK]``.
        choices: texts for every gap, or a list of them for each.

    Raises:
        RequestError: no gap, choices that are not texts, or of different lengths in one of several gaps; of block
            models gaps in several blocks, or text behind the block of the gaps.
    """
    if text is None:
        raise RequestError("score_choices: the model has no tokenizer.json")
    parts = split_gaps(template)
    gaps = sum(isinstance(part, int) for part in parts)
    if any(isinstance(part, int) and part != 1 for part in parts):
        raise RequestError("template: a gap is [MASK]; it becomes as long as the choices are")
    each = [_encoded(text, own) for own in _per_gap(choices, gaps)]
    sizes = [sorted({len(ids) for ids in own.values()}) for own in each]
    _check_sizes(sizes)
    lengths = [[size] for size in sizes[0]] if gaps == 1 else [[own[0] for own in sizes]]
    laid = []
    for own in lengths:
        count = iter(own)
        filled = [part if isinstance(part, str) else next(count) for part in parts]
        ids = text.encode_gaps(filled, model.spec.mask, special=front is None)
        laid.append(lay_out(0, ids, text, model.spec, None if front is None else list(front)))
    _check_seen(laid, model.spec)
    found = _read(model, cache, laid, sum(map(sum, lengths)))
    scores: list[dict[str, float]] = [{} for _ in each]
    for own, logp in zip(lengths, found, strict=True):
        begin = 0
        for gap, size in enumerate(own):
            for name, ids in each[gap].items():
                if len(ids) == size:
                    scores[gap][name] = float(logp[range(begin, begin + size), ids].sum())
            begin += size
    return [_shares({name: own[name] for name in names}) for own, names in zip(scores, each, strict=True)]


def _shares(scores: dict[str, float]) -> dict[str, float]:
    """Probabilities of logarithms."""
    values: list[float] = torch.tensor(list(scores.values()), dtype=torch.float64).softmax(0).tolist()
    return dict(zip(scores, values, strict=True))


def _check_sizes(sizes: Sequence[Sequence[int]]) -> None:
    """Refuse texts of different lengths where there are several gaps."""
    odd = next((at for at, own in enumerate(sizes) if len(own) > 1), None)
    if len(sizes) > 1 and odd is not None:
        raise RequestError(
            f"choices of gap {odd} have {' and '.join(map(str, sizes[odd]))} tokens; with several gaps all of one must "
            "have equally many"
        )


def _check_seen(laid: Sequence[Layout], spec: ModelSpec) -> None:
    """Refuse what a forward pass over one block of a block model would not read, or not see."""
    for one in laid if spec.block is not None else ():
        size, first = spec.block or 1, 0 if spec.mask == NO_MASK else len(one.prompt)
        opens = (
            spec.shift and first % size == 0
        )  # the block before predicts this token, and nothing else is in the input
        end = 1 if opens else (first // size + 1) * size - first  # of what is seen, in the response
        gaps = max(at for at in range(one.gen_length) if at not in one.fixed)
        if gaps >= end:
            raise RequestError(
                f"template: all gaps must lie in one block of the model ({size} tokens), for one forward pass reads one"
            )
        if one.gen_length > end:
            raise RequestError(
                f"template: this model decodes blocks of {size} tokens in order and does not see the last "
                f"{one.gen_length - end} tokens, which stand behind the block of the gaps; leave them out, or take a "
                "model with full attention"
            )


def _per_gap(choices: Sequence[object], gaps: int) -> list[Sequence[object]]:
    """The alternatives of each gap, of one list for all or a list for each."""
    if not is_list(choices) or not choices:
        raise RequestError(f"choices must be a list of texts, or one for each gap; got {choices!r:.80}")
    each = list(choices) if all(is_list(own) for own in choices) else [choices] * gaps
    if len(each) != gaps:
        raise RequestError(f"choices has {len(each)} lists for {gaps} gaps")
    return each  # type: ignore[return-value]


def _encoded(text: Text, choices: Sequence[object]) -> dict[str, list[int]]:
    """Ids of the alternatives of a gap."""
    odd = next((own for own in choices if not isinstance(own, str) or not own), None)
    if odd is not None or len(choices) < 2:
        raise RequestError(f"choices of a gap must be at least two texts that are not empty; got {choices!r:.80}")
    return {own: text.plain(own) for own in dict.fromkeys(map(str, choices))}


@torch.no_grad()
def _read(model: Denoiser, cache: Cache, laid: Sequence[Layout], masks: int) -> list[torch.Tensor]:
    """``[n, V]`` log-probabilities of the masked positions of each text, all in one forward pass."""
    canvas = Canvas.blank(
        [one.prompt for one in laid],
        [one.gen_length for one in laid],
        model.spec,
        fixed=[one.fixed for one in laid],
        device=model.network.device,
    )
    gaps = canvas.masked & (canvas.position < canvas.wanted[:, None])
    zero = torch.zeros(len(laid), device=model.network.device)
    how = Sampling(zero.double(), zero.double() + 1, zero.long(), zero.long(), samples=False, filters=False)
    with model.lock:
        answer = model(
            canvas, Ask(gaps), cache, model.init(canvas, cache), how, zero.long(), needs=frozenset({"logits"})
        )
    logits, (row, _) = answer.prediction.logits, answer.prediction.lines
    assert logits is not None
    if len(row) != masks:
        raise RequestError(
            "template: all gaps must lie in one block of the model, for one forward pass reads one block"
        )
    logp = logits.double().log_softmax(-1).cpu()
    return [logp[(row == at).cpu()] for at in range(len(laid))]
