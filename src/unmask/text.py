"""Text in and out: tokenizer, chat template, the readable part of a response."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from .core.errors import ModelError, RequestError

_MORE_EOS = ("<|eot_id|>", "<|im_end|>")  # end a turn of LLaDA's and Dream's chat templates beside the end of text
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # Dream's checkpoints come with the latter alone
_GAP = re.compile(r"(?P<escape>\\*)\[MASK\b(?P<end>(?:\*(?P<count>[0-9]+))?\])?")
_GAPS = "a gap is [MASK] or, for 12 tokens, [MASK*12]; \\[MASK] is the text itself"
_CUT = "\ufdd0"  # a Unicode noncharacter: marks where text must be tokenized in two pieces


class Text:
    """A checkpoint's tokenizer and chat template, read by ``transformers`` without running remote code.

    ``tokenizer.json``, or Qwen2's ``vocab.json`` and ``merges.txt``.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast

        single = (folder / "tokenizer.json").exists()
        try:
            self._tokenizer: Any = (PreTrainedTokenizerFast if single else Qwen2TokenizerFast).from_pretrained(
                str(folder)
            )
        except Exception as error:  # tokenizers raises bare Exception for a file that does not parse
            raise ModelError(f"{folder / _FILES[not single][0]} cannot be read: {error}") from None
        template = folder / "chat_template.jinja"
        if not self._tokenizer.chat_template and template.exists():  # older transformers do not look there
            self._tokenizer.chat_template = template.read_text(encoding="utf-8")

    @staticmethod
    def find(folder: Path) -> Text | None:
        """The folder's tokenizer, or None where it has none (prompts must then be ids)."""
        return Text(folder) if any(all((folder / f).exists() for f in files) for files in _FILES) else None

    def __len__(self) -> int:
        return int(max(self._tokenizer.get_vocab().values(), default=-1)) + 1

    @property
    def pieces_by_id(self) -> dict[int, str]:
        """The vocabulary as the tokenizer writes it."""
        return {i: piece for piece, i in self._tokenizer.get_vocab().items()}

    @property
    def eos(self) -> tuple[int, ...]:
        """End-of-text ids that the tokenizer knows of."""
        known = self._tokenizer.get_vocab()
        own = self._tokenizer.eos_token_id
        return tuple(i for i in (own, *(known.get(t) for t in _MORE_EOS)) if i is not None)

    @property
    def bos(self) -> int | None:
        """The begin-of-text id; None where the tokenizer has none."""
        own = self._tokenizer.bos_token_id
        return None if own is None else int(own)

    @property
    def chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self._tokenizer.chat_template)

    @property
    def template(self) -> str:
        """The source of the chat template; "" where there is none."""
        return str(self._tokenizer.chat_template or "")

    @property
    def fingerprint(self) -> str:
        """A name for vocabulary, rules and chat template."""
        whole = self._tokenizer.backend_tokenizer.to_str() + self.template
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def encode(self, prompt: str | Sequence[Mapping[str, str]], chat: bool | None = None) -> list[int]:
        """Ids of a prompt.

        What a user writes stays text: the name of a control token such as ``<|mdm_mask|>`` inside a prompt or a message
        is encoded as the characters it consists of, never as the control token. Only the chat template makes those;
        who wants others gives ids.

        Args:
            prompt: a user's message, or a conversation as ``[{"role": ..., "content": ...}, ...]``.
            chat: apply the chat template (default: when there is one). A conversation always needs it.

        Raises:
            RequestError: an empty prompt, a malformed conversation, or a chat template is needed and missing.
        """
        if not prompt:
            raise RequestError("the prompt is empty")
        use = self.chat if chat is None else chat
        if isinstance(prompt, str) and not use:
            _check_text(prompt)
            cut = _marker([prompt])
            return self._ids(self._defuse(prompt, cut), cut, True)
        if not self.chat:
            raise RequestError("the model has no chat template; give the prompt as plain text and chat=False")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        for message in messages:
            _check_message(message)
        cut = _marker([v for m in messages for v in m.values() if isinstance(v, str)])
        safe = [{k: self._defuse(v, cut) if isinstance(v, str) else v for k, v in m.items()} for m in messages]
        try:
            text = self._tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # whatever the template's own code raises
            raise RequestError(f"the chat template does not accept this conversation: {error}") from None
        return self._ids(text, cut, False)

    def encode_gaps(self, parts: Sequence[str | int], mask: int, special: bool = True) -> list[int]:
        """Ids of a text with gaps, from :func:`split_gaps`: each stretch of text for itself, masks between them.

        ``special``: with what the tokenizer puts around a text by itself.
        """
        texts = [part for part in parts if isinstance(part, str)]
        for text in texts:
            _check_text(text)
        cut = _marker(texts)
        pieces = [(at, p) for at, text in enumerate(texts) for p in self._defuse(text, cut).split(cut) if p]
        own: list[list[int]] = [[] for _ in texts]
        around: tuple[list[int], list[int]] = [], []
        if pieces:
            whole = self._tokenizer([p for _, p in pieces], is_split_into_words=True, add_special_tokens=special)
            for token, word in zip(whole["input_ids"], whole.word_ids(), strict=True):
                (around[any(own)] if word is None else own[pieces[word][0]]).append(token)
        filled = iter(own)
        inner = [i for part in parts for i in (next(filled) if isinstance(part, str) else [mask] * part)]
        return [*around[0], *inner, *around[1]]

    def render(self, messages: Sequence[Mapping[str, str]], answer: bool = True) -> str:
        """A conversation in the chat template, control tokens by name; :meth:`parse` makes ids of it.

        ``answer``: followed by what begins the assistant's answer; False: the last message is left open instead.

        Raises:
            RequestError: there is no chat template, or it does not accept the conversation.
        """
        if not self.chat:
            raise RequestError("the model has no chat template")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=answer, continue_final_message=not answer
                )
            )
        except Exception as error:  # whatever the template's own code raises
            raise RequestError(f"the chat template does not accept this conversation: {error}") from None

    def parse(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text in which the names of control tokens are those tokens, as in what :meth:`render` returns.

        ``special``: with what the tokenizer puts around a text by itself.
        """
        _check_text(text)
        return self._ids(text, _marker([text]), special)

    def token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            RequestError: it is none or several.
        """
        _check_text(text)
        cut = _marker([text])
        ids = self._ids(self._defuse(text, cut), cut, False)
        if len(ids) != 1:
            raise RequestError(f"{text!r} is {len(ids)} tokens for this model, not one; give one token's text, or ids")
        return ids[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; bytes that are no complete character become U+FFFD."""
        return self._decode(ids, skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each id by itself, special tokens shown by name."""
        return [self._decode([i], skip_special_tokens=False) for i in ids]

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        """The first character of every control token's name; None when there are no such names."""
        names = {t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special and len(t.content) > 1}
        found = "|".join(re.escape(n) for n in sorted(names))
        return re.compile(f"(?={found})(.)", re.DOTALL) if found else None

    def _defuse(self, text: str, cut: str) -> str:
        """The text with a mark inside every control token's name, so that the tokenizer does not see the name."""
        return self._control.sub(rf"\1{cut}", text) if self._control else text

    def _ids(self, text: str, cut: str, special: bool) -> list[int]:
        """Ids of marked text; ``special``: with what the tokenizer puts around a text by itself."""
        pieces = text.split(cut)
        if len(pieces) == 1:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])
        return list(self._tokenizer(pieces, is_split_into_words=True, add_special_tokens=special)["input_ids"])


def split_gaps(text: str) -> list[str | int]:
    r"""A text at its gaps ``[MASK]`` and ``[MASK*12]``: stretches of text, and for each gap its number of tokens.

    ``\[MASK]`` is the text ``[MASK]``, ``\\[MASK]`` a backslash and a gap; other backslashes are what they are.

    Raises:
        RequestError: a gap that cannot be read or has no tokens, or there is none.
    """
    parts: list[str | int] = []
    plain, at = "", 0
    for found in _GAP.finditer(text):
        slashes = found["escape"]
        plain += text[at : found.start()] + "\\" * (len(slashes) // 2)
        at = found.end()
        if len(slashes) % 2:
            plain += found[0][len(slashes) :]
            continue
        wrong = found[0][len(slashes) :] + ("" if found["end"] else text[at : at + 8])
        if not found["end"]:
            raise RequestError(f"cannot read the gap at {wrong!r}; {_GAPS}")
        count = int((found["count"] or "1").lstrip("0")[:12] or 0)
        if count < 1:
            raise RequestError(f"the gap {wrong} has no tokens; at least 1 is needed, as in [MASK*1]")
        parts += [plain, count] if plain else [count]
        plain = ""
    plain += text[at:]
    parts += [plain] if plain else []
    if all(isinstance(part, str) for part in parts):
        raise RequestError(f"there is no gap to fill; {_GAPS}")
    return parts


def _marker(texts: Sequence[str]) -> str:
    """A run of noncharacters that occurs in none of the texts."""
    mark = _CUT
    while any(mark in text for text in texts):
        mark += _CUT
    return mark


def _check_message(message: Any) -> None:
    if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
        raise RequestError(f"a conversation is a list of {{'role': text, 'content': text}}, got {message!r} in it")
    _check_text(message["role"])
    _check_text(message["content"])


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"not valid Unicode: {error}") from None
