"""Text in and out: tokenizer, chat template, the readable part of a response.

Control tokens (the mask, ends of text, what stands around the turns of a conversation) come from the chat template and
from ids alone. Text that spells the name of one is text, in a prompt and in a message alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import RequestError
from .calls import CallFormat, call_format, spelled, takes_tools
from .conversation import check, check_text, continued
from .files import Files
from .gaps import split_gaps
from .seal import Sealed
from .template import Template

__all__ = ["CallFormat", "Text", "split_gaps"]
_MORE_EOS = ("<|eot_id|>", "<|im_end|>")  # end a turn of LLaDA's and Dream's chat templates beside the end of text


class Text:
    """A checkpoint's tokenizer and chat template, read without running code of the checkpoint.

    ``tokenizer.json``, or Qwen2's ``vocab.json`` and ``merges.txt``; others without ``tokenizer.json`` are converted by
    ``transformers`` where it is installed.

    Attributes:
        use_chat: whether :meth:`encode` applies the chat template to a string when it is not told; see
            :attr:`unmask.text.files.Files.chat`.

    Raises:
        ModelError: a file that cannot be read; names it.
    """

    def __init__(self, folder: Path, control: Iterable[int] = ()) -> None:
        """Read the files of a folder; ``control``: ids of control tokens, whatever the files say of them."""
        files = Files.read(folder, control)
        self._tokens = Sealed(files)
        self._template = Template(files.template, files.roles, self._tokens.mark)
        self._roles = files.roles
        self.use_chat = files.chat
        self._pieces: dict[int, str] = {}  # of ids that have been shown

    @staticmethod
    def find(folder: Path, control: Iterable[int] = ()) -> Text | None:
        """The folder's tokenizer, or None where it has none (prompts must then be ids)."""
        return Text(folder, control) if Files.there(folder) else None

    def __len__(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        return max(self._tokens.vocabulary.values(), default=-1) + 1

    @cached_property
    def unknown(self) -> tuple[int, ...]:
        """Ids below the size that the tokenizer has no token for; there are none in most."""
        known = set(self._tokens.vocabulary.values())
        return tuple(i for i in range(len(self)) if i not in known) if len(known) < len(self) else ()

    @property
    def pieces_by_id(self) -> dict[int, str]:
        """The vocabulary as the tokenizer writes it."""
        return {i: piece for piece, i in self._tokens.vocabulary.items()}

    @property
    def added(self) -> Mapping[int, str]:
        """Tokens beside the model's vocabulary, which stand for themselves, control tokens among them."""
        return self._tokens.added

    @property
    def decoder(self) -> Mapping[str, Any] | None:
        """How pieces become text, as ``tokenizer.json`` says."""
        return self._tokens.decoder

    @property
    def hidden(self) -> frozenset[int]:
        """Ids that the readable text leaves out."""
        return self._tokens.hidden

    @property
    def eos(self) -> tuple[int, ...]:
        """End-of-text ids that the tokenizer knows of."""
        known = (self._id(name) for name in (self._roles.get("eos_token"), *_MORE_EOS))
        return tuple(dict.fromkeys(i for i in known if i is not None))

    @property
    def bos(self) -> int | None:
        """The begin-of-text id; None where the tokenizer has none."""
        return self._id(self._roles.get("bos_token"))

    @property
    def control(self) -> Mapping[str, int]:
        """Ids of the control tokens by name."""
        return self._tokens.control

    @property
    def chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self.template)

    @property
    def template(self) -> str:
        """The source of the chat template; "" where there is none."""
        return self._template.source

    @property
    def fingerprint(self) -> str:
        """A name for vocabulary, rules and chat template."""
        return hashlib.sha256((self._tokens.written + self.template).encode()).hexdigest()[:16]

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the chat template shows functions to the model."""
        return self.chat and takes_tools(self._shown)

    @cached_property
    def calls(self) -> CallFormat | None:
        """How the chat template writes calls of functions; None where it writes none that can be read."""
        hidden = self.hidden
        names: tuple[list[str], list[str]] = [], []
        for name, i in self.control.items():
            names[i in hidden].append(name)
        return call_format(self._shown, *names) if self.chat else None

    def _shown(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        return self._template.render(messages, True, tools)

    def encode(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        chat: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of a prompt.

        Args:
            prompt: a user's message, or a conversation as ``[{"role": ..., "content": ...}, ...]``; a content is a text
                or ``[{"type": "text", "text": ...}, ...]``. A last message of the assistant is continued.
            chat: apply the chat template to a string; None: as ``use_chat`` says. A conversation always needs it.
            tools: functions for the chat template, ``[{"type": "function", "function": {...}}, ...]``; one that does
                not take them leaves them out.

        Raises:
            RequestError: an empty prompt, a malformed conversation, or a chat template is needed and missing.
        """
        if not prompt:
            raise RequestError("the prompt is empty")
        if isinstance(prompt, str):
            if not (self.use_chat if chat is None else chat):
                return self.plain(prompt, special=True)
            prompt = [{"role": "user", "content": prompt}]
        messages = check(prompt)
        if continued(messages) and messages[-1].get("tool_calls"):
            raise RequestError("the last message calls functions; it cannot be continued, results must follow it")
        if any(one.get("tool_calls") for one in messages) and self.calls is None:
            messages = [spelled(one) for one in messages]
        return self.parse(self._template.render(messages, not continued(messages), tools))

    def plain(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text in which names of control tokens are text.

        ``special``: with what the tokenizer puts around a text by itself.

        Raises:
            RequestError: not valid Unicode.
        """
        check_text(text)
        return self._tokens.encode(text, special)

    def encode_gaps(self, parts: Sequence[str | int], mask: int, special: bool = True) -> list[int]:
        """Ids of a text with gaps, from :func:`split_gaps`: each stretch of text for itself, masks between them.

        ``special``: with what the tokenizer puts around a text by itself.
        """
        texts = [part for part in parts if isinstance(part, str)]
        for text in texts:
            check_text(text)
        own: list[list[int]] = [[] for _ in texts]
        around: tuple[list[int], list[int]] = [], []
        for token, at in self._tokens.encode_parts(texts, special) if texts else ():
            (around[any(own)] if at is None else own[at]).append(token)
        filled = iter(own)
        inner = [i for part in parts for i in (next(filled) if isinstance(part, str) else [mask] * part)]
        return [*around[0], *inner, *around[1]]

    def render(self, messages: Sequence[Mapping[str, Any]], answer: bool = True) -> str:
        """A conversation in the chat template, control tokens by name; :meth:`parse` makes ids of it.

        In front of a name that a message spells stands the noncharacter U+FDD0, so that it stays text there.
        ``answer``: followed by what begins the assistant's answer; False: the last message is left open instead.

        Raises:
            RequestError: there is no chat template, or it does not accept the conversation.
        """
        return self._template.render(check(messages), answer)

    def parse(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text in which the names of control tokens are those tokens, as in what :meth:`render` returns.

        ``special``: with what the tokenizer puts around a text by itself.

        Raises:
            RequestError: not valid Unicode.
        """
        check_text(text)
        return self._tokens.encode(self._tokens.seal(text), special)

    def token(self, text: str) -> int:
        """The id of a control token by its name, or of a text that is one token.

        Raises:
            RequestError: it is none or several.
        """
        if text in self.control:
            return self.control[text]
        ids = self.plain(text)
        if len(ids) != 1:
            raise RequestError(f"{text!r} is {len(ids)} tokens for this model, not one; give one token's text, or ids")
        return ids[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; bytes that are no complete character become U+FFFD."""
        return self._tokens.decode(ids, hidden=True)

    def piece(self, id: int) -> str:
        """A token as the vocabulary writes it; "" for an id that it has no token for."""
        return self._tokens.tokenizer.id_to_token(id) or ""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each id by itself, special tokens shown by name; "" for what is no id."""
        known = self._pieces
        for i in ids:
            if i not in known:
                known[i] = self._tokens.decode([i], hidden=False) if i >= 0 else ""
        return [known[i] for i in ids]

    def _id(self, name: str | None) -> int | None:
        if name is None:
            return None
        return self.control[name] if name in self.control else self._tokens.vocabulary.get(name)
