"""What a checkpoint's folder says of its tokenizer and chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import ModelError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE = ("additional_special_tokens", "extra_special_tokens")
_QWEN = re.compile(r"(Qwen2|Dream)\w*")  # tokenizer classes whose rules are known here, beside vocab.json, merges.txt
_QWEN_SPLIT = (  # Qwen2's pre-tokenisation, as its published tokenizer.json has it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_EOS = "<|endoftext|>"
_BASE = re.compile(r"(?<![a-z])(base|pretrain|pretrained)(?![a-z])", re.IGNORECASE)
_CHAT = re.compile(r"(?<![a-z])(instruct|chat|it|sft|dpo|grpo|rlhf)(?![a-z])", re.IGNORECASE)
_PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}


@dataclass(frozen=True)
class Files:
    """The tokenizer files of a folder.

    Attributes:
        folder: where they are.
        config: ``tokenizer_config.json``, completed by ``special_tokens_map.json``.
        more: ids of control tokens beside those that the files name.
    """

    folder: Path
    config: Mapping[str, Any]
    more: frozenset[int] = frozenset()

    @staticmethod
    def there(folder: Path) -> bool:
        """Whether a folder has a tokenizer: ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``."""
        return (folder / "tokenizer.json").exists() or all(
            (folder / name).exists() for name in ("vocab.json", "merges.txt")
        )

    @staticmethod
    def read(folder: Path, more: Iterable[int] = ()) -> Files:
        """The files of a folder.

        Raises:
            ModelError: one of them cannot be read; names it.
        """
        config = _object(folder / "special_tokens_map.json") | _object(folder / "tokenizer_config.json")
        qwen = {} if (folder / "tokenizer.json").exists() else {"eos_token": _QWEN_EOS, "pad_token": _QWEN_EOS}
        return Files(folder, qwen | config, frozenset(more))

    @cached_property
    def roles(self) -> dict[str, str]:
        """Names of control tokens by role (``"bos_token"``, ...), as chat templates get them."""
        named = {role: _content(self.config.get(role)) for role in ROLES}
        for key in _MORE:
            if isinstance(more := self.config.get(key), dict):  # tokens that a model names by itself
                named |= {role: _content(token) for role, token in more.items()}
        return {role: name for role, name in named.items() if name}

    @cached_property
    def special(self) -> tuple[str, ...]:
        """Names of all control tokens that the config gives a role or lists."""
        lists = [self.config.get(key) for key in _MORE]
        listed = [_content(token) for tokens in lists if isinstance(tokens, list) for token in tokens]
        return tuple(dict.fromkeys([*self.roles.values(), *filter(None, listed)]))

    @cached_property
    def template(self) -> str:
        """The source of the chat template; "" where there is none.

        ``chat_template.jinja`` counts before the key of ``tokenizer_config.json``, and that before
        ``chat_template.json``. Of several by name, the one called default.

        Raises:
            ModelError: a file that cannot be read, or a value that is no template.
        """
        file, older = self.folder / "chat_template.jinja", self.folder / "chat_template.json"
        if file.exists():
            return _text(file)
        where, given = self.folder / "tokenizer_config.json", self.config.get("chat_template")
        if not given and older.exists():
            where, given = older, _object(older).get("chat_template")
        if isinstance(given, list):
            given = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
        if isinstance(given, dict):
            given = next(iter(given.values())) if len(given) == 1 else given.get("default")
        if given is not None and not isinstance(given, str):
            raise ModelError(f"{where}: chat_template must be a template or a list of templates by name")
        return given or ""

    @cached_property
    def chat(self) -> bool:
        """Whether prompts get the chat template by default: there is one, and the model is a chat model.

        What ``generation_config.json`` says (``{"unmask": {"chat": false}}``) counts first. Else a model is taken for a
        chat model unless its name says that it is a base model: the name of the folder, the hub's, or
        ``_name_or_path`` of ``config.json``, the first that holds a word such as Base or Instruct.
        """
        if not self.template:
            return False
        recommended = _object(self.folder / "generation_config.json").get("unmask")
        given = recommended.get("chat") if isinstance(recommended, dict) else None
        if isinstance(given, bool):
            return given
        for name in self._names():
            if _CHAT.search(name):
                return True
            if _BASE.search(name):
                return False
        return True

    def _names(self) -> Iterator[str]:
        for folder in dict.fromkeys((self.folder.absolute(), self.folder.resolve())):
            yield folder.name
            if folder.parent.name == "snapshots":  # the hub's cache: models--OWNER--NAME/snapshots/COMMIT
                yield folder.parent.parent.name.rpartition("--")[2]
        yield str(_object(self.folder / "config.json").get("_name_or_path") or "").rpartition("/")[2]

    @cached_property
    def ids(self) -> frozenset[int]:
        """The ids of control tokens that the model's own configs name, and of others that are given."""
        configs = [_object(self.folder / f"{name}.json") for name in ("config", "generation_config")]
        given = [c.get(f"{role}_token_id") for c in configs for role in ("mask", "eos", "bos", "pad")]
        flat = [i for value in given for i in (value if isinstance(value, list) else [value])]
        return self.more.union(i for i in flat if isinstance(i, int))

    def table(self) -> dict[str, Any]:
        """What ``tokenizer.json`` holds (made of ``vocab.json`` and ``merges.txt`` where there is none), with the added
        tokens of ``tokenizer_config.json`` among its own and without truncation and padding.

        Raises:
            ModelError: a file that cannot be read, or a tokenizer of unknown rules.
        """
        file = self.folder / "tokenizer.json"
        table = _object(file) if file.exists() else self._made()
        if not isinstance(table.get("model"), dict) or not isinstance(table.get("added_tokens", []), list):
            raise ModelError(f"{file} cannot be read: it holds no tokenizer (model, added_tokens)")
        added = self._added(table.get("added_tokens", []))
        return table | {"truncation": None, "padding": None, "added_tokens": added} | self._around(added)

    def _around(self, added: list[dict[str, Any]]) -> dict[str, Any]:
        """The post-processor, where ``add_bos_token`` or ``add_eos_token`` says what stands around a text."""
        keys = ("add_bos_token", "add_eos_token")
        if not any(isinstance(self.config.get(key), bool) for key in keys):
            return {}
        ids = {token["content"]: token["id"] for token in added}
        bos, eos = ([self.roles.get(key[4:])] if self.config.get(key) else [] for key in keys)
        text = [{"Sequence": {"id": "A", "type_id": 0}}]
        single = [*({"SpecialToken": {"id": name, "type_id": 0}} for name in bos if name in ids), *text]
        single += [{"SpecialToken": {"id": name, "type_id": 0}} for name in eos if name in ids]
        named = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (*bos, *eos) if name in ids}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        return {
            "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named}
        }

    def _added(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The added tokens of both files; what ``tokenizer_config.json`` says of one counts."""
        more = self.config.get("added_tokens_decoder")
        listed = sorted((more if isinstance(more, dict) else {}).items(), key=lambda pair: int(pair[0]))
        added = {token["content"]: token for token in own}
        for number, token in listed:
            new = {"id": int(number), "content": token["content"], **_PLAIN, "special": False}
            said = {key: value for key, value in token.items() if key in _PLAIN}
            added[token["content"]] = added.get(token["content"], new) | said
        highest = max((token["id"] for token in added.values()), default=-1)
        for name in self.special:
            if name not in added:
                highest += 1
                added[name] = {"id": highest, "content": name, **_PLAIN}
        return list(added.values())

    def _made(self) -> dict[str, Any]:
        """A ``tokenizer.json`` of ``vocab.json`` and ``merges.txt``."""
        kind = str(self.config.get("tokenizer_class") or "Qwen2Tokenizer")
        if not _QWEN.fullmatch(kind):
            return self._converted(kind)
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        vocab, merges = str(self.folder / "vocab.json"), str(self.folder / "merges.txt")
        try:
            tokenizer = Tokenizer(models.BPE.from_file(vocab, merges))
        except Exception as error:  # tokenizers raises bare Exception for a file that does not parse
            raise ModelError(f"{vocab} and merges.txt cannot be read: {error}") from None
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        table: dict[str, Any] = json.loads(tokenizer.to_str())
        return table

    def _converted(self, kind: str) -> dict[str, Any]:
        """The same by ``transformers``, for tokenizers whose rules are not known here."""
        way = "save it as tokenizer.json: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise ModelError(
                f'{self.folder}: a {kind} without tokenizer.json needs `pip install "unmask[convert]"`; or {way}'
            ) from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), trust_remote_code=False)
            table: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        except Exception as error:  # whatever a tokenizer's class raises
            raise ModelError(f"{self.folder}: its {kind} cannot be read ({error}); {way}") from None
        return table


def _content(token: Any) -> str | None:
    """The name of a token as configs write it: a string, or an object with its content."""
    given = token.get("content") if isinstance(token, dict) else token
    return given if isinstance(given, str) else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None


def _object(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file."""
    if not file.exists():
        return {}
    try:
        value = json.loads(_text(file))
    except ValueError as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file} does not hold a JSON object")
    return value
