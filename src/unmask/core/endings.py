"""What stands behind an end of text, for policies that imitate programs which pad there before the text is done."""

from __future__ import annotations

from .canvas import Canvas, ModelSpec, Update
from .errors import RequestError


def check_pad(policy: str, pad: int | None, spec: ModelSpec) -> None:
    """Refuse a padding id that a model does not have.

    Raises:
        RequestError: the id is out of range, or the mask's.
    """
    if pad is not None and (pad >= spec.vocab or pad == spec.mask):
        raise RequestError(f"{policy}: pad must be an id below {spec.vocab} and not the mask's {spec.mask}, got {pad}")


def padded(canvas: Canvas, update: Update, pad: int | None) -> Update:
    """The update, and ``pad`` at all positions behind an end of text, whatever stands there; None: nothing.

    In rows that stop at an end of text, from their first one on, masked positions before it or not.
    """
    if pad is None:
        return update
    behind = canvas.response & ~canvas.fixed & (canvas.position > canvas.apply(update).eos_at[:, None])
    behind = behind & canvas.eos_stop[:, None] & ((canvas.tokens != pad) | update.write)
    return Update(update.write | behind, update.token.masked_fill(behind, pad), update.remask)
