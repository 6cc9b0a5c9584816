"""Autoregressive transformers (Llama, Qwen2, Qwen3), run by the same blocks as the diffusion models.

They judge drafts (:mod:`unmask.policies.apd`) and are the baseline of ``unmask bench``. Keys and values are kept by
position on the canvas, one memory for all rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec
from ..core.errors import ModelError, RequestError
from ..core.precision import native
from . import llama, packed
from .config import Config
from .family import Family, describe, pick
from .hub import find_folder
from .loading import blank, fill, matched
from .slots import Memory, Reading, read
from .tensors import Tensors, first_dtype, named_dtype, read_json, tensors_of
from .transformer import Architecture, Transformer
from .vocabulary import pieces_of

BUNDLED = Path(__file__).parents[1] / "assets" / "verifier"


@dataclass(frozen=True)
class Causal:
    """What a config says of a causal transformer: sizes, longest text, ids that end a text."""

    arch: Architecture
    context: int
    eos: tuple[int, ...]


@dataclass(frozen=True)
class Kin:
    """One family of Llama's kin.

    Attributes:
        name, architectures, harmless: see :class:`unmask.models.family.Family`.
        qkv_bias, qk_norm: what its layers have whatever the config says.
        switches: keys of the config that add biases.
        head_dim: size of a head where the config names none; 0: what the width leaves to each.
    """

    name: str
    architectures: tuple[str, ...]
    qkv_bias: bool = False
    qk_norm: bool = False
    switches: tuple[str, ...] = ()
    head_dim: int = 0
    harmless: frozenset[str] = llama.HARMLESS

    def describe(self, config: Config) -> Causal:
        """See :class:`unmask.models.family.Family`."""
        attention, mlp = (key in self.switches and config.flag(key) for key in ("attention_bias", "mlp_bias"))
        arch, context = llama.architecture(
            config,
            qkv_bias=self.qkv_bias or attention,
            o_bias=attention,
            mlp_bias=mlp,
            qk_norm=self.qk_norm,
            head_dim=self.head_dim,
        )
        return Causal(arch, context, config.ids("eos_token_id"))

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return llama.names(arch)


FAMILIES: tuple[Family[Causal], ...] = (
    Kin("llama", ("LlamaForCausalLM",), switches=("attention_bias", "mlp_bias")),
    Kin("qwen2", ("Qwen2ForCausalLM",), qkv_bias=True),
    Kin("qwen3", ("Qwen3ForCausalLM",), qk_norm=True, switches=("attention_bias",), head_dim=128),
)


class CausalModel:
    """A causal transformer in a folder or on the hub; its weights are read when they are first needed."""

    def __init__(self, source: str, what: str = "verifier") -> None:
        """Read the config; ``what`` the model is called in messages.

        Raises:
            ModelError: there is none, or one of another kind.
        """
        self.source, self.what = source, what
        try:
            self.folder = find_folder(source, weights=False, kind=what)
            self._config = read_json(self.folder / "config.json")
            self._family: Family[Causal] = pick(FAMILIES, self._config, self.folder)
            self.description: Causal = describe(self._family, self._config, self.folder)
        except ModelError as error:
            raise ModelError(f"the {what} {source!r} cannot be used: {error}") from None
        self._fitting: set[tuple[str | None, int, int]] = set()
        self._networks: dict[tuple[torch.device, torch.dtype], Transformer] = {}

    @property
    def vocab(self) -> int:
        """How many ids it has."""
        return self.description.arch.vocab

    @cached_property
    def eos(self) -> tuple[int, ...]:
        """The ids that end a text, of config.json and generation_config.json."""
        file = self.folder / "generation_config.json"
        more = Config(read_json(file), self._family.name, file.name).ids("eos_token_id") if file.exists() else ()
        return tuple(dict.fromkeys(self.description.eos + more))

    def fits(self, spec: ModelSpec) -> None:
        """Refuse a tokenizer other than the model's; vocabularies may differ in what neither tokenizer knows.

        Raises:
            ModelError: an id that both know stands for different text, or the model's tokenizer has more ids than this
                one has embeddings; or weights are missing or of another shape.
        """
        used, key = min(spec.limit, spec.vocab), (spec.tokenizer, spec.limit, spec.vocab)
        if key in self._fitting:
            return
        theirs = pieces_of(self.folder)
        ours = pieces_of(Path(spec.tokenizer)) if spec.tokenizer else None
        if ours is not None and theirs is not None:
            odd = next((i for i, piece in sorted(ours.items()) if theirs.get(i, piece) != piece), None)
            if odd is not None:
                raise ModelError(
                    f"the {self.what} {self.source!r} has another tokenizer than the model {spec.tokenizer!r}: "
                    f"id {odd} is {theirs[odd]!r} there and {ours[odd]!r} here"
                )
        if self.vocab < used:
            raise ModelError(f"the {self.what} {self.source!r} has {self.vocab} ids, the model uses {used}")
        self._matched()
        self._fitting.add(key)

    def check(self, prompt: Sequence[int], total: int) -> None:
        """Refuse what it cannot read: a prompt's ids, and so many tokens with the response.

        Raises:
            ModelError: the text is longer than the context.
            RequestError: the prompt has an id that it does not know.
        """
        highest, most = max(prompt, default=0), self.description.context
        if highest >= self.vocab:
            raise RequestError(f"it has the id {highest}, but the {self.what} {self.source!r} has {self.vocab} ids")
        if total > most:
            raise ModelError(
                f"the {self.what} {self.source!r} reads at most {most} tokens, prompt and response have {total}"
            )

    def memory(self, canvas: Canvas) -> Memory:
        """Nothing read yet of the rows of a canvas."""
        rows, total = canvas.tokens.shape
        return self.empty(rows, total, canvas.tokens.device)

    def empty(self, rows: int, total: int, device: torch.device, dtype: torch.dtype | None = None) -> Memory:
        """Room for so many rows of so many positions."""
        return Memory.empty(self.description.arch, rows, total, device, dtype or self.dtype(device))

    @torch.no_grad()
    def score(self, tokens: Tensor, row: Tensor, position: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Logits ``[N, V]`` for the tokens at some places, each given everything before it.

        Reads what is not in the memory yet, all rows side by side.

        Args:
            tokens: ``[B, T]``.
            row, position: ``[N]`` the places, all behind the first position of their row.
            memory: of these rows; written in place.
        """
        known = memory.known
        stop = torch.zeros_like(known).scatter_reduce(0, row, position, "amax")  # the last input predicts there
        count = (stop - known).clamp(min=0)
        width, extent = torch.stack([count.amax(), stop.amax()]).tolist()
        slot = torch.arange(width, device=tokens.device)
        place, real = known[:, None] + slot, slot < count[:, None]
        network = self.network(tokens.device, memory.key[0].dtype)
        hidden = _read(network, tokens, place, real, extent, memory)
        return network.logits(hidden[row, position - 1 - known[row]]), replace(memory, known=known + count)

    @torch.no_grad()
    def branch(self, tokens: Tensor, begin: Tensor, options: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """Log-probabilities of candidates for N positions in a row, in one pass over a token tree.

        The first candidate of each position is the trunk; each candidate is read behind the trunk up to it.

        Args:
            tokens: ``[B, T]``, the text up to ``begin``.
            begin: ``[B]`` the first position with candidates.
            options: ``[B, N, K]`` ids.
            memory: of these rows, with at least N K slots more than T; written in place.

        Returns:
            ``[B, K]`` of the first position's candidates behind the text, ``[B, N - 1, K, K]`` of each position's
            candidates (last) behind those of the one before it, and the memory.
        """
        rows, count, k = options.shape
        device, known, bin_ = tokens.device, memory.known, memory.key[0].shape[1] - 1
        new = (begin - known).clamp(min=0)
        (width,) = new.amax(0, keepdim=True).tolist()
        column, node = torch.arange(width, device=device), torch.arange(count * k, device=device)
        place, step = known[:, None] + column, node // k
        first = bin_ - count * k  # slot of the tree
        stored, total = torch.arange(bin_, device=device), tokens.shape[1]
        real = column < new[:, None]
        trunk = (stored >= first) & ((stored - first) % k == 0) & ((stored - first) // k < step[:, None])
        own = (stored < begin[:, None, None]) | (trunk | (stored == first + node[:, None]))
        reading = Reading(
            torch.cat([torch.where(real, tokens.gather(1, place.clamp(max=total - 1)), 0), options.flatten(1)], 1),
            torch.cat([place, begin[:, None] + step], 1),
            torch.cat([torch.where(real, place, bin_), (first + node).expand(rows, -1)], 1),
            torch.cat([stored <= place[:, :, None], own.expand(rows, -1, -1)], 1),
            bin_,
        )
        network = self.network(device, memory.key[0].dtype)
        hidden = read(network, reading, memory)
        last = hidden[torch.arange(rows, device=device), new - 1]
        start = network.logits(last).log_softmax(-1).gather(1, options[:, 0])
        behind = hidden[:, width:].view(rows, count, k, -1)
        pairs = []
        for n in range(count - 1):  # of one position at a time: all logits at once would be too many
            logits = network.logits(behind[:, n].flatten(0, 1)).log_softmax(-1).view(rows, k, -1)
            pairs.append(logits.gather(2, options[:, n + 1, None].expand(-1, k, -1)))
        pair = torch.stack(pairs, 1) if pairs else start.new_zeros(rows, 0, k, k)
        return start, pair, replace(memory, known=torch.maximum(known, begin))

    @torch.no_grad()
    def decode(
        self, prompts: Sequence[Sequence[int]], gen_length: int, device: torch.device, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[list[int], float]]:
        """Continue prompts greedily, side by side; after each forward pass one token of every row, and the seconds it
        took. Whoever asks stops asking: there are ``gen_length`` passes.
        """
        size = torch.tensor([len(p) for p in prompts], device=device)
        total = int(max(map(len, prompts))) + gen_length
        tokens = torch.zeros(len(prompts), total, dtype=torch.long, device=device)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.tensor(prompt, device=device)
        row, memory = torch.arange(len(prompts), device=device), self.empty(len(prompts), total, device, dtype)
        for step in range(gen_length):
            began = time.perf_counter()
            logits, memory = self.score(tokens, row, size + step, memory)
            token = logits.argmax(-1)
            ids = token.tolist()
            yield ids, time.perf_counter() - began
            tokens[row, size + step] = token

    def dtype(self, device: torch.device) -> torch.dtype:
        """What it calculates in on a device: the checkpoint's own, where that is native there."""
        found = named_dtype(self._config)
        return native(first_dtype(tensors_of(self._weights)) if found is None else found, device)

    def network(self, device: torch.device, dtype: torch.dtype | None = None) -> Transformer:
        """The network, read once for each device and dtype.

        Raises:
            ModelError: weights that are missing, of another shape, or cannot be read.
        """
        key = device, dtype or self.dtype(device)
        if key not in self._networks:
            where = self._weights, key[0], key[1]
            held = _networks.get(where)
            self._networks[key] = _networks[where] = self._made(*key) if held is None else held
        return self._networks[key]

    def _made(self, device: torch.device, dtype: torch.dtype) -> Transformer:
        made, tensors, found = self._matched()
        fill(made, found, tensors, device, dtype)
        made.make_rotary(self.description.context, device)
        if packed.usable(device, dtype):
            packed.pack(made)
        return made.eval().requires_grad_(False)

    def _matched(self) -> tuple[Transformer, Tensors, dict[str, str]]:
        """The network on the meta device, and the tensors to read into it."""
        arch, folder = self.description.arch, self._weights
        names, untied = (self._family.names(each) for each in (arch, replace(arch, tied=False)))
        made = blank(arch)
        try:
            tensors = tensors_of(folder)
            return made, tensors, matched(made, names, set(untied.values()), tensors, folder)
        except ModelError as error:
            raise ModelError(f"the {self.what} {self.source!r} cannot be loaded: {error}") from None

    @cached_property
    def _weights(self) -> Path:
        return find_folder(self.source, kind=self.what)


def _read(network: Transformer, tokens: Tensor, place: Tensor, real: Tensor, extent: int, memory: Memory) -> Tensor:
    """Hidden states ``[B, Q, C]`` of the tokens at ``place [B, Q]`` where ``real``, written into the memory, of which
    the first ``extent`` positions are attended to, each place to those up to itself.
    """
    total = tokens.shape[1]
    inside = place.clamp(max=total - 1)
    keys = torch.arange(extent, device=tokens.device) <= place[:, :, None]
    token = torch.where(real, tokens.gather(1, inside), 0)
    return read(network, Reading(token, inside, torch.where(real, place, total), keys, extent), memory)


_alive: WeakValueDictionary[tuple[str, str], CausalModel] = WeakValueDictionary()
_networks: WeakValueDictionary[tuple[Path, torch.device, torch.dtype], Transformer] = WeakValueDictionary()


def load(source: str | None = None, what: str = "verifier") -> CausalModel:
    """The model at a folder or hub id; None: the one that comes with the package.

    There is one for each source and ``what``, and one network for both, as long as anybody holds it. Whoever asks must
    keep it: nobody else does.

    Raises:
        ModelError: there is none.
    """
    name = str(BUNDLED) if source is None else source
    found = _alive.get((name, what))
    if found is None:
        found = _alive[name, what] = CausalModel(name, what)
    return found
