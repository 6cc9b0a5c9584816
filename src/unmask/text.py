"""Text in and out: tokenizer, chat template, the readable part of a response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .core.errors import ModelError, RequestError

_MORE_EOS = ("<|eot_id|>",)  # ends a turn of LLaDA-Instruct's chat template beside the config's end of text


class Text:
    """A checkpoint's ``tokenizer.json`` and chat template, read by ``transformers`` without running remote code."""

    def __init__(self, folder: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        try:
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(folder))
        except Exception as error:  # tokenizers raises bare Exception for a file that does not parse
            raise ModelError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None

    @staticmethod
    def find(folder: Path) -> Text | None:
        """The folder's tokenizer, or None where it has none (prompts must then be ids)."""
        return Text(folder) if (folder / "tokenizer.json").exists() else None

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def eos(self) -> tuple[int, ...]:
        """End-of-text ids that the tokenizer knows of."""
        known = self._tokenizer.get_vocab()
        own = self._tokenizer.eos_token_id
        return tuple(i for i in (own, *(known.get(t) for t in _MORE_EOS)) if i is not None)

    @property
    def chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self._tokenizer.chat_template)

    def encode(self, prompt: str | Sequence[dict[str, str]], chat: bool | None = None) -> list[int]:
        """Ids of a prompt.

        Args:
            prompt: a user's message, or a conversation as ``[{"role": ..., "content": ...}, ...]``.
            chat: apply the chat template (default: when there is one). A conversation always needs it.

        Raises:
            RequestError: an empty prompt, or a chat template is needed and missing.
        """
        use = self.chat if chat is None else chat
        if not isinstance(prompt, str) or use:
            if not self.chat:
                raise RequestError("the model has no chat template; give the prompt as plain text and chat=False")
            if not prompt:
                raise RequestError("the prompt is empty")
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if not prompt:
            raise RequestError("the prompt is empty")
        return list(self._tokenizer(prompt)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each id by itself, special tokens shown by name."""
        return [str(self._tokenizer.decode([i])) for i in ids]
