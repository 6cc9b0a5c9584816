"""Which text a token id stands for, read from the files of a tokenizer, without making one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from .tensors import read_json


def pieces_of(folder: Path) -> dict[int, str] | None:
    """The pieces of a folder's tokenizer by id, as its files spell them; None where it has no tokenizer.

    ``tokenizer.json``, or ``vocab.json`` with the tokens that ``added_tokens.json`` and ``tokenizer_config.json`` add.

    Raises:
        ModelError: a file that cannot be read, or is of no such kind.
    """
    whole, parts = folder / "tokenizer.json", folder / "vocab.json"
    if whole.exists():
        data = read_json(whole)
        model = data.get("model")
        vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
        if isinstance(vocabulary, list):  # Unigram's: pieces with their scores, in the order of their ids
            vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
        added = data.get("added_tokens") or []
        named = {token["content"]: token["id"] for token in added if isinstance(token, Mapping)}
        return _by_id(whole, vocabulary, named)
    if parts.exists():
        return _by_id(parts, read_json(parts), _added(folder))
    return None


def _added(folder: Path) -> dict[str, Any]:
    """Tokens beside a ``vocab.json``, by their text."""
    file, config = folder / "added_tokens.json", folder / "tokenizer_config.json"
    named = read_json(file) if file.exists() else {}
    given = read_json(config).get("added_tokens_decoder") if config.exists() else None
    more = given if isinstance(given, Mapping) else {}
    return named | {token["content"]: int(i) for i, token in more.items() if isinstance(token, Mapping)}


def _by_id(file: Path, vocabulary: Any, added: Mapping[str, Any]) -> dict[int, str]:
    if not isinstance(vocabulary, Mapping):
        raise ModelError(f"{file} has no vocabulary: expected an object from pieces to ids, or a list of pieces")
    return {i: piece for piece, i in {**vocabulary, **added}.items() if isinstance(i, int)}
