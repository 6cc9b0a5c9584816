"""An autoregressive model that judges drafts: a causal transformer of ``transformers``, one cache for all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .core.canvas import Canvas, ModelSpec
from .core.errors import ModelError, RequestError
from .core.precision import native
from .text import Text

SHIPPED = Path(__file__).parent / "assets" / "verifier"


@dataclass(frozen=True)
class Memory:
    """What the verifier has read: per layer keys and values ``[B, T + 1, H_kv, D]`` by position on the canvas, the last
    one for what is to be thrown away; and ``known [B]``, how many positions from the left hold the row's text.
    """

    key: list[Tensor]
    value: list[Tensor]
    known: Tensor

    def cropped(self, known: Tensor) -> Memory:
        """Forget what lies behind the first ``known [B]`` positions."""
        return replace(self, known=torch.minimum(self.known, known))


class Verifier:
    """A folder or hub id of a causal transformer with ordinary keys and values in every layer (Llama, Qwen2, GPT-2 and
    their kin); its weights are read when they are first needed.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.config: Any = read_config(source, "verifier").get_text_config(decoder=True)
        sizes = ("max_position_embeddings", "num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
        kinds = set(getattr(self.config, "layer_types", None) or ())
        windowed = kinds - {"full_attention"} if kinds else getattr(self.config, "sliding_window", None)
        if windowed or not all(hasattr(self.config, size) for size in sizes):
            raise ModelError(
                f"the verifier {source!r} ({self.config.model_type}) cannot be used: expected a causal transformer "
                "whose layers all keep the keys and values of the whole text, such as Llama or Qwen2"
            )
        self._fitting: set[tuple[str | None, int, int]] = set()
        self._networks: dict[tuple[torch.device, torch.dtype], Any] = {}

    def fits(self, spec: ModelSpec) -> None:
        """Refuse a tokenizer other than the model's; vocabularies may differ in what neither tokenizer knows.

        Raises:
            ModelError: an id that both know stands for different text, or the model's tokenizer has more ids than the
                verifier has embeddings.
        """
        said, key = min(spec.limit, spec.vocab), (spec.tokenizer, spec.limit, spec.vocab)
        if key in self._fitting:
            return
        theirs = _vocabulary(self.source)
        ours = _vocabulary(spec.tokenizer) if spec.tokenizer else None
        if ours is not None and theirs is not None:
            odd = next((i for i, piece in sorted(ours.items()) if theirs.get(i, piece) != piece), None)
            if odd is not None:
                raise ModelError(
                    f"the verifier {self.source!r} has another tokenizer than the model {spec.tokenizer!r}: "
                    f"id {odd} is {theirs[odd]!r} there and {ours[odd]!r} here"
                )
        if self.config.vocab_size < said:
            raise ModelError(f"the verifier {self.source!r} has {self.config.vocab_size} ids, the model says {said}")
        self._fitting.add(key)

    def check(self, prompt: Sequence[int], total: int) -> None:
        """Refuse what it cannot read: a prompt's ids, and so many tokens with the response.

        Raises:
            ModelError: the text is longer than the verifier's context.
            RequestError: the prompt has an id that the verifier does not know.
        """
        highest, ids, most = max(prompt, default=0), self.config.vocab_size, self.config.max_position_embeddings
        if highest >= ids:
            raise RequestError(f"it has the id {highest}, but the verifier {self.source!r} has {ids} ids")
        if total > most:
            raise ModelError(
                f"the verifier {self.source!r} reads at most {most} tokens, prompt and response have {total}"
            )

    def memory(self, canvas: Canvas) -> Memory:
        """Nothing read yet."""
        config, (rows, total) = self.config, canvas.tokens.shape
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        device = canvas.tokens.device
        like = torch.zeros(rows, total + 1, heads, head, dtype=self._dtype(device), device=device)
        layers = range(config.num_hidden_layers)
        known = torch.zeros_like(canvas.prompt)
        return Memory([like.clone() for _ in layers], [like.clone() for _ in layers], known)

    @torch.inference_mode()
    def score(self, tokens: Tensor, row: Tensor, position: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Logits ``[N, V]`` for the tokens at some places, each given everything before it.

        Reads what is not in the memory yet, all rows side by side: shorter ones leave gaps that nobody attends to.

        Args:
            tokens: ``[B, T]``.
            row, position: ``[N]`` the places, all behind the first position of their row.
            memory: of these rows.
        """
        known, total = memory.known, tokens.shape[1]
        stop = torch.zeros_like(known).scatter_reduce(0, row, position, "amax")  # the last input predicts there
        count = (stop - known).clamp(min=0)
        line = position - 1 - known[row]
        width, past, first = torch.stack([count.amax(), known.amax(), line.amin()]).tolist()
        slot = torch.arange(width, device=tokens.device)
        real, place = slot < count[:, None], known[:, None] + slot
        there = torch.arange(past, device=tokens.device) < known[:, None]
        network = self._network(tokens.device)
        named = signature(network.forward).parameters
        keep = {"logits_to_keep": width - first} if "logits_to_keep" in named else {}
        out = network(
            input_ids=tokens.gather(1, place.clamp(max=total - 1)).masked_fill(~real, 0),
            attention_mask=torch.cat([there, real], 1).long(),
            position_ids=place.clamp(max=self.config.max_position_embeddings - 1),
            past_key_values=_as_cache(memory, past),
            use_cache=True,
            **keep,
        )
        at, fresh = torch.where(real, place, total), _from_cache(out.past_key_values, past)
        if [new.shape[2:] for new in fresh] != [mine.shape[2:] for mine in memory.key + memory.value]:
            raise ModelError(
                f"the verifier {self.source!r} keeps keys and values of another shape than its config says"
            )
        for mine, new in zip(memory.key + memory.value, fresh, strict=True):
            mine[torch.arange(len(mine), device=at.device)[:, None], at] = new
        logits: Tensor = out.logits[row, line - (width - out.logits.shape[1])]
        return logits.float() if logits.dtype != torch.float64 else logits, replace(memory, known=known + count)

    def _dtype(self, device: torch.device) -> torch.dtype:
        named = getattr(self.config, "dtype", None) or getattr(self.config, "torch_dtype", None) or torch.float32
        own = getattr(torch, named) if isinstance(named, str) else named
        return native(own, device)

    def _network(self, device: torch.device) -> Any:
        key = device, self._dtype(device)
        if key not in self._networks:
            self._networks[key] = read_network(self.source, *key, "verifier")
        return self._networks[key]


_alive: WeakValueDictionary[str, Verifier] = WeakValueDictionary()


def load(source: str | None) -> Verifier:
    """The verifier at a folder or hub id; None: the one that ships with the package.

    There is one for each source as long as anybody holds it. Whoever asks must keep it: nobody else does.

    Raises:
        ModelError: there is none.
    """
    name = str(SHIPPED) if source is None else source
    found = _alive.get(name)
    if found is None:
        found = _alive[name] = Verifier(name)
    return found


def read_config(source: str, what: str) -> Any:
    """The config of a causal model, by ``transformers``; ``what`` it is called in messages.

    Raises:
        ModelError: neither a folder nor a hub id that can be fetched, or of no known kind.
    """
    from transformers import AutoConfig

    if not source.strip() or Path(source).is_file():
        raise ModelError(f"no {what} at {source!r}: expected a folder with config.json and weights, or a hub id")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers and the hub raise many kinds
        raise ModelError(f"no {what} at {source!r}: {_first_line(error)}") from None


def read_network(source: str, device: torch.device, dtype: torch.dtype, what: str) -> Any:
    """The network of a causal model, ready to be asked.

    Raises:
        ModelError: it cannot be read, or weights are missing or of another shape.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(f"the {what} {source!r} cannot be loaded: {_first_line(error)}") from None
    finally:
        if bars:
            logging.enable_progress_bar()
    wrong = sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", ())]))
    if wrong:
        raise ModelError(f"the {what} {source!r}: weights missing or of another shape: {wrong[0]}, ...")
    return network.to(device).eval().requires_grad_(False)


def read_text(source: str, what: str) -> Text | None:
    """The tokenizer of a folder or hub id; None where there is none.

    Raises:
        ModelError: it cannot be fetched or read.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.jinja"]))
        except Exception as error:  # the hub's own errors, and those of whichever HTTP library it uses
            raise ModelError(f"no tokenizer of the {what} {source!r}: {_first_line(error)}") from None
    return Text.find(folder)


def _vocabulary(source: str) -> dict[int, str] | None:
    """The tokenizer's pieces, or None where there is no tokenizer."""
    text = read_text(source, "verifier")
    return text.pieces_by_id if text else None


def _as_cache(memory: Memory, past: int) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(memory.key, memory.value, strict=True)) if past else ():
        cache.update(key[:, :past].transpose(1, 2), value[:, :past].transpose(1, 2), layer)
    return cache


def _from_cache(cache: Any, past: int) -> list[Tensor]:
    """All layers' new keys, then their values, ``[B, Q, H_kv, D]``."""
    pairs = [(layer.keys, layer.values) for layer in cache.layers]
    return [pair[which][:, :, past:].transpose(1, 2) for which in (0, 1) for pair in pairs]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
