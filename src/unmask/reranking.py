"""Several lengths and samples of a response, decoded as one batch and ranked by their probability (PaDIR)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checks import as_batch
from .core.errors import RequestError
from .core.values import integer, number
from .results import Result

if TYPE_CHECKING:
    from .api import Model


@dataclass(frozen=True)
class Candidate:
    """A response with its rank among others.

    Attributes:
        result: the response.
        gen_length: tokens that it was decoded with, the end of text behind them not counted.
        score: see :func:`score`; -inf where the response failed.
    """

    result: Result
    gen_length: int
    score: float


def score(result: Result, alpha: float = 0.6) -> float:
    """The log-probability of a response over ((5 + length) / 6)^alpha (arXiv 2407.21046; GNMT's length penalty).

    Each token counts with the probability it was committed with, the end of text as well; length is their number.
    """
    if result.finish_reason not in ("eos", "length", "stop"):
        return -math.inf
    count = min(result.stats.tokens + (result.finish_reason == "eos"), len(result.tokens))
    sure = [c for c in result.confidence[:count] if c > 0]  # tokens that were given have none
    return sum(map(math.log, sure)) / math.pow((5 + len(sure)) / 6, alpha)


def rerank(
    model: Model,
    prompts: Any,
    lengths: Sequence[int],
    *,
    spread: int = 0,
    n: int = 1,
    alpha: float = 0.6,
    ends: bool = False,
    policy: Any = "refine",
    cache: Any = None,
    **options: Any,
) -> list[list[Candidate]]:
    """Decode every prompt with several response lengths and samples side by side; of each prompt the best comes first,
    and those that the model has not ended come last.

    The paper predicts the length, takes the likeliest ones, each with its neighbours, and draws several samples of
    each; behind each stands the end of text from the first pass on. Here the lengths are given, for no model that is
    loaded has a length predictor, and the model says itself whether a response ends within its length.

    Args:
        model: decodes.
        prompts: see :meth:`unmask.Model.generate`.
        lengths: tokens of a response to try.
        spread: also so many tokens less and more, one by one.
        n: samples of each length; more than one needs a temperature, or a policy that draws.
        alpha: how much longer responses are favoured; 0: the sum of the log-probabilities.
        ends: the end of text is given behind the last token, as in the paper, so that a response is as long as its
            length says, and nothing says whether that length is likely. It needs a policy and a model that take fixed
            tokens behind masked positions.
        policy, cache: see :meth:`unmask.Model.generate`.
        options: its other arguments, such as ``temperature``, ``seed`` and ``batch_size``.

    Raises:
        RequestError: no lengths, one below 1, negative ``spread``, and what :meth:`unmask.Model.generate` raises.
    """
    around, samples, weight = integer("spread", spread), integer("n", n), number("alpha", alpha)
    if around < 0 or samples < 1 or weight < 0:
        raise RequestError(f"expected spread >= 0, n >= 1 and alpha >= 0, got {spread}, {n} and {alpha}")
    given = [integer("a length", length) for length in lengths]
    tried = sorted({length + more for length in given for more in range(-around, around + 1)})
    if not tried or tried[0] < 1:
        raise RequestError(f"lengths must be at least {1 + around} (spread={around}), got {list(lengths)!r:.80}")
    many = as_batch(prompts)
    each = [(prompt, length) for prompt in many for length in tried]
    if ends:
        options["fixed"] = [{length: model.denoiser.spec.eos[0]} for _, length in each]
    room = [length + ends for _, length in each]
    found = model.generate([prompt for prompt, _ in each], room, policy, cache, n=samples, **options)
    ranked = []
    per = len(tried) * samples
    for first in range(0, len(found), per):
        own = [
            Candidate(result, tried[i // samples], score(result, weight))
            for i, result in enumerate(found[first : first + per])
        ]
        ranked.append(sorted(own, key=lambda one: (one.result.finish_reason not in ("eos", "stop"), -one.score)))
    return ranked
