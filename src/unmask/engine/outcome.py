"""What has become of a request, and everything that an engine tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..stop import Ending
from .loop import Step
from .request import Request

FinishReason = Literal["eos", "stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Outcome:
    """What has become of a request.

    Attributes:
        request: the request.
        finish_reason: ``eos``, ``stop`` (a stop string), ``length`` (all of gen_length is filled), ``abort`` or
            ``error``.
        tokens: the response's ids; the mask id where nothing was generated.
        steps: of each token the row's forward pass (from 0) that committed it; -1 where none did.
        confidence: of each token, its probability when it was committed; 0 where none was.
        nfe: forward passes.
        positions: positions computed, averaged over the layers and summed over the forward passes.
        seconds: time in the engine from admission to the end; the other rows of the batch share it.
        first_token_seconds: the same to the commit of the response's first token that stayed; None: there is none.
        ending: where a stop string cuts the response; None: nowhere.
        error: what went wrong, for ``error``.
    """

    request: Request
    finish_reason: FinishReason
    tokens: list[int]
    steps: list[int]
    confidence: list[float]
    nfe: int
    positions: float
    seconds: float
    first_token_seconds: float | None
    ending: Ending | None = None
    error: str | None = None


Event = Step | Outcome


def explained(error: Exception) -> str:
    """What an exception means for a request."""
    if type(error).__name__ == "OutOfMemoryError" or "Cannot allocate memory" in str(error):  # on CUDA, on a CPU
        return "the device is out of memory; try a smaller batch_size or gen_length, or set a memory budget"
    return f"{type(error).__name__}: {error}"
