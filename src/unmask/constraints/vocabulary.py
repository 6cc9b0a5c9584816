"""Which bytes each token of a tokenizer writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.canvas import ModelSpec
from ..core.errors import RequestError
from ..text import Text

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_KINDS = "byte-level tokenizers, and those whose decoder replaces a character by a space and falls back on bytes"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens that write text.

    Attributes:
        ids: ``[N]`` their ids.
        text: bytes of them all, one after the other.
        offsets: ``[N + 1]`` where each begins.
        size: of the model's logits.
        eos: ids that end a text.
    """

    ids: NDArray[np.int64]
    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    size: int
    eos: tuple[int, ...]

    @staticmethod
    def of(written: Mapping[int, bytes], size: int, eos: Sequence[int]) -> Vocabulary:
        """From the bytes of each id; ids without any are left out."""
        ids = [i for i, own in sorted(written.items()) if own and i < size and i not in eos]
        offsets = np.cumsum([0, *(len(written[i]) for i in ids)])
        text = np.frombuffer(b"".join(written[i] for i in ids), np.uint8)
        return Vocabulary(np.array(ids, np.int64), text, offsets, size, tuple(eos))

    @property
    def single(self) -> frozenset[int]:
        """Bytes that occur in some token."""
        return frozenset(np.unique(self.text).tolist())


def vocabulary(text: Text, spec: ModelSpec, names: bool = False) -> Vocabulary:
    """The tokens that a model may generate: no control tokens, none that the tokenizer does not know.

    ``names``: control tokens that readable text shows, such as those around a call of a function, write their names.

    Raises:
        RequestError: a tokenizer of another kind, of whose tokens it cannot be said which bytes they write.
    """
    never = {spec.mask, *spec.unknown, *spec.eos, *(text.hidden if names else text.control.values())}
    added, decoder = text.added, _Decoder(text.decoder)
    written = {
        i: added[i].encode() if i in added else decoder.bytes(piece)
        for i, piece in text.pieces_by_id.items()
        if i not in never and i < min(spec.limit, spec.vocab)
    }
    return Vocabulary.of({i: own for i, own in written.items() if own}, spec.vocab, spec.eos)


class _Decoder:
    """How a tokenizer's pieces become bytes, as its ``decoder`` says."""

    def __init__(self, decoder: Mapping[str, Any] | None) -> None:
        steps = [] if decoder is None else decoder.get("decoders", [decoder])
        kinds = [step.get("type") for step in steps]
        self.level = kinds == ["ByteLevel"]
        self.fallback = "ByteFallback" in kinds
        self.space = ""
        odd = [kind for kind in kinds if kind not in ("ByteLevel", "ByteFallback", "Fuse", "Replace", "Metaspace")]
        for step in steps:
            if step.get("type") == "Replace" and isinstance(step.get("pattern"), Mapping):
                self.space = step["pattern"].get("String", "")
                odd += [] if step.get("content") == " " and self.space else ["Replace"]
            elif step.get("type") == "Metaspace":
                self.space = step.get("replacement", "\u2581")
                odd += ["Metaspace"] if step.get("prepend_scheme", "always") != "never" else []
        if odd or not (self.level or self.space):
            found = ", ".join(map(str, odd or kinds)) or "none"
            raise RequestError(f"constraints need {_KINDS}; this tokenizer's decoder is {found}")

    def bytes(self, piece: str) -> bytes:
        if self.level:
            table = _byte_level()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else b""
        if self.fallback and (found := _BYTE.fullmatch(piece)):
            return bytes([int(found[1], 16)])
        return piece.replace(self.space, " ").encode()


@lru_cache(maxsize=1)
def _byte_level() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(i): i for i in plain}
    rest = [i for i in range(256) if i not in plain]
    return table | {chr(256 + at): i for at, i in enumerate(rest)}
