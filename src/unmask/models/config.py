"""A checkpoint's config.json, read key by key: what is read is honoured, what is not must be known to be harmless."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ModelError


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


HARMLESS = words(
    """
    add_cross_attention architectures attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens
    bos_token_id cls_token_id cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping embd_pdrop embedding_dropout encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder label2id length_penalty max_length
    max_new_tokens min_length model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
    remove_invalid_values repetition_penalty resid_pdrop residual_dropout return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_last_hidden_states tokenizer_class
    top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p unk_token_id use_bfloat16
    use_cache use_flash_attention use_flash_attention_2 use_flash_attn
    """
)
"""Keys of any family that say nothing of what the network computes when it decodes."""
_NETWORK = words(
    """
    act activation alibi attention attn bias block blocks cap capping causal chunk clip conv dim embed embedding
    embeddings eps epsilon expert experts factor ffn gate gated gating head heads hidden intermediate k key kv latent
    layer layernorm layers logit logits mamba mlp moe mu multiplier norm normalization nope parallel position
    positional positions post pre q qk qkv query residual rms rmsnorm rope rotary router routing scalar scale scaler
    scaling shared sink sinks size sliding softcap softcapping softmax sparse ssm state tie tied tying v value width
    window
    """
)
_RECORDS = words(
    """
    author batch checkpoint coef commit created data dataset date dropout epoch epochs id ids init initializer learning
    length license loss lr optimizer run seed step steps token tokenizer tokens train trained training unsloth version
    wandb warmup
    """
)
_WORD = re.compile(r"[A-Za-z][a-z]*|[0-9]+")


@dataclass(frozen=True)
class Config(Mapping[str, Any]):
    """The values of a JSON object. Reading one marks it as honoured; :meth:`refuse_rest` judges the others.

    Attributes:
        given: the object.
        family: the family that reads it, for messages.
        file: the name of the file it stands in.
        path: what stands before a key in messages, such as ``rope_parameters.``.
        asked: the keys that were read.
    """

    given: Mapping[str, Any]
    family: str
    file: str = "config.json"
    path: str = ""
    asked: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return self.given[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)

    def __contains__(self, key: object) -> bool:
        return key in self.given

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, ``default`` where it is absent; honoured from now on."""
        self.asked.add(key)
        return self.given.get(key, default)

    def inside(self, key: str, values: Mapping[str, Any]) -> Config:
        """The object under a key, for itself."""
        return Config(values, self.family, self.file, f"{self.path}{key}.")

    def wrong(self, key: str, accepted: str) -> ModelError:
        """The error of a value: names file, key and value, and says what is accepted."""
        return ModelError(f"{self.file} has {self.path}{key} = {self.given.get(key)!r:.80}; it must be {accepted}")

    def integer(self, key: str, default: int | None = None, *, at_least: int = 1) -> int:
        """An integer; ``default`` where the key is absent or null.

        Raises:
            ModelError: no such key, or not such an integer.
        """
        value = self.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self._absent(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise self.wrong(key, f"an integer >= {at_least}")
        return value

    def optional(self, key: str) -> int | None:
        """An integer of at least 1; None where the key is absent or null.

        Raises:
            ModelError: not such an integer.
        """
        return None if self.get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; ``default`` where the key is absent or null.

        Raises:
            ModelError: no such key, or not such a number.
        """
        value = self.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self._absent(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.wrong(key, "a number > 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value; ``default`` where the key is absent or null.

        Raises:
            ModelError: something else.
        """
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return default if value is None else value

    def ids(self, key: str) -> tuple[int, ...]:
        """Ids: a number, a list of numbers, or null (none).

        Raises:
            ModelError: something else.
        """
        value = self.get(key)
        ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
        if any(not isinstance(i, int) or isinstance(i, bool) for i in ids):
            raise self.wrong(key, "an integer or a list of integers")
        return ids

    def expect(self, supported: Mapping[str, Any]) -> None:
        """Refuse keys that, where present and not null, differ from the one value that the family's code implements.

        Raises:
            ModelError: names the key and the value that is supported.
        """
        for key, value in supported.items():
            found = self.get(key)
            if found is not None and found != value:
                raise ModelError(
                    f"{self.family}: {self.file} has {self.path}{key} = {found!r:.80}; supported is {value!r}"
                )

    def refuse_rest(self, harmless: frozenset[str] = frozenset()) -> None:
        """Refuse keys that nobody has read and that may change what the network computes.

        Null, false, zero and what is empty switch nothing on. Of other values, a key may change the computation when
        a word of its name is one of networks (``logit_scale``), or when it is no text and its name has no word of
        training and records (``seed``). ``HARMLESS`` and the family's own ``harmless`` are known; so are keys that
        begin with an underscore.

        Raises:
            ModelError: names the key.
        """
        for key in sorted(set(self.given) - self.asked - HARMLESS - harmless):
            if not key.startswith("_") and self.given[key] and _may_matter(key, self.given[key]):
                raise ModelError(
                    f"{self.family}: {self.file} has {self.path}{key} = {self.given[key]!r:.80}, which is not known "
                    "here and may change what the network computes; remove the key if it does not"
                )

    def _absent(self, key: str) -> ModelError:
        return ModelError(f"{self.file} has no {self.path + key!r}")


def _may_matter(key: str, value: Any) -> bool:
    named = {word.lower() for word in _WORD.findall(key)}
    return bool(named & _NETWORK) or not (isinstance(value, str) or named & _RECORDS)
