"""A tokenizer that finds control tokens only where they are meant.

Text of users may spell a control token's name, and a tokenizer that is handed one string cannot tell it from what the
chat template writes. So the tokenizer's control tokens are given other names here, ones that nobody can write because
they hold random digits; whoever means a control token writes that name. Everything else (normalisation, splitting,
merging, what stands around a text) is the tokenizer's own, and ids are the same.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from .files import Files

MARK = "\ufdd0"  # a Unicode noncharacter: in front of a name it says that the name is text; twice it is itself
_CONTROL_SHAPE = re.compile(r"<[|\uff5c].+[|\uff5c]>", re.DOTALL)  # <|...|>, whether marked special or not
_BRACKETED = re.compile(r"[<\[{(|]\S*[>\]})|]")


class Sealed:
    """The tokenizer of a folder, by ``tokenizers``.

    Attributes:
        control: id of each control token by its name: what is marked special, has a role in ``tokenizer_config.json``
            or the model's configs, is written ``<|...|>``, or stands in brackets in the chat template.
        hidden: ids that the readable text leaves out: of these, the special ones and those with a role.
        added: tokens beside the model's vocabulary, which stand for themselves.
        decoder: how pieces become text, as ``tokenizer.json`` says.
    """

    def __init__(self, files: Files) -> None:
        table = files.table()
        added = [token for token in table["added_tokens"] if token["content"]]
        hidden = {t["content"] for t in added if t["special"] or t["id"] in files.ids or t["content"] in files.special}
        control = [t["content"] for t in added if t["content"] in hidden or _is_control(t["content"], files.template)]
        nonce = secrets.token_hex(8)
        self._seal = {name: f"<{nonce}{at}>" for at, name in enumerate(control)}
        self._open = {seal: name for name, seal in self._seal.items()}
        self._sealed = re.compile(f"<{nonce}[0-9]+>")
        self.tokenizer = _loaded(renamed(table, self._seal), files.folder / "tokenizer.json", self._open)
        self.control: dict[str, int] = {t["content"]: t["id"] for t in added if t["content"] in self._seal}
        self.hidden = frozenset(self.control[name] for name in hidden)
        some = "|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)"
        self.added: dict[int, str] = {t["id"]: t["content"] for t in added}
        self.decoder: Mapping[str, Any] | None = table.get("decoder")
        self._written = re.compile(f"{MARK}{MARK}|{MARK}(?:{some})?|{some}")
        self._spelled = re.compile(f"(?={some})|{MARK}")

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token, under the tokens' own names."""
        return {self._open.get(piece, piece): i for piece, i in self.tokenizer.get_vocab().items()}

    @property
    def written(self) -> str:
        """The tokenizer as text, under the tokens' own names."""
        return json.dumps(renamed(json.loads(self.tokenizer.to_str()), self._open))

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of a text without control tokens; ``special``: with what the tokenizer puts around a text by itself."""
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def encode_parts(self, parts: Sequence[str], special: bool) -> list[tuple[int, int | None]]:
        """Ids of texts one after the other, each tokenized for itself, with the index of the text that each id is of;
        None for what the tokenizer puts around them all.
        """
        found = self.tokenizer.encode(list(parts), is_pretokenized=True, add_special_tokens=special)
        return list(zip(found.ids, found.word_ids, strict=True))

    def mark(self, text: str) -> str:
        """The text with every control token's name in it marked as text."""
        return self._spelled.sub(MARK, text) if MARK not in text else self._spelled.sub(_marked, text)

    def seal(self, marked: str) -> str:
        """What :meth:`encode` needs of a text in which names are control tokens, except marked ones."""
        return self._written.sub(lambda found: self._meant(found[0]), marked)

    def _meant(self, found: str) -> str:
        if found.startswith(MARK):
            return found[1:]
        return self._seal[found]

    def decode(self, ids: Sequence[int], hidden: bool) -> str:
        """Text of ids; ``hidden``: without those of ``self.hidden``."""
        kept = [i for i in ids if i not in self.hidden] if hidden else list(ids)
        text = str(self.tokenizer.decode(kept, skip_special_tokens=False))
        return self._sealed.sub(lambda found: self._open.get(found[0], found[0]), text)


def _loaded(table: dict[str, Any], file: Path, names: Mapping[str, str]) -> Any:
    """The tokenizer of a ``tokenizer.json``, every added token with the id that is listed.

    ``tokenizers`` numbers them anew, which gives others where the vocabulary has holes; standing in the vocabulary they
    keep theirs.
    """
    from tokenizers import Tokenizer

    vocab = table["model"].get("vocab")
    listed = {token["content"]: token["id"] for token in table["added_tokens"] if token["content"]}
    for model in (
        table["model"],
        table["model"] | {"vocab": {**listed, **vocab} if isinstance(vocab, dict) else vocab},
    ):
        try:
            tokenizer = Tokenizer.from_str(json.dumps(table | {"model": model}, ensure_ascii=False))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{file} cannot be read: {error}") from None
        wrong = {name: tokenizer.token_to_id(name) for name, i in listed.items() if tokenizer.token_to_id(name) != i}
        if not wrong:
            return tokenizer
    name, found = next(iter(wrong.items()))
    raise ModelError(
        f"{file}: the added token {names.get(name, name)!r} is listed as {listed[name]}, but the vocabulary has it as "
        f"{found}"
    )


def _marked(found: re.Match[str]) -> str:
    """The mark itself is doubled; a name gets one in front."""
    return MARK if found.end() == found.start() else MARK + MARK


def _is_control(name: str, template: str) -> bool:
    return bool(_CONTROL_SHAPE.fullmatch(name) or (_BRACKETED.fullmatch(name) and name in template))


def renamed(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A ``tokenizer.json`` with tokens under other names.

    Merges of which such a token is a part or the outcome are left out: no text becomes it.
    """
    added = [token | {"content": names.get(token["content"], token["content"])} for token in table["added_tokens"]]
    model = dict(table["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, dict) and (inside := names.keys() & vocab.keys()):
        model["vocab"] = {names.get(piece, piece): i for piece, i in vocab.items()}
        if merges := model.get("merges"):
            pairs = (tuple(m.split(" ", 1)) if isinstance(m, str) else m for m in merges)
            kept = [not inside.intersection((*pair, "".join(pair))) for pair in pairs]
            model["merges"] = [merge for merge, stays in zip(merges, kept, strict=True) if stays]
    elif isinstance(vocab, list):  # Unigram
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return dict(table) | {"added_tokens": added, "model": model}
