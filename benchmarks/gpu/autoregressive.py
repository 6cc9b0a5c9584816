"""A causal model of the same shape beside the diffusion model, and a verifier of half a billion parameters.

The baseline is a loop over the layers of the same network with a causal mask: one forward pass for the prompt, then
one graph a token, with static keys and values. What it says is worth nothing, how long it takes is.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import device as devices
import torch
from safetensors.torch import save_file
from torch import Tensor

from unmask.models.denoiser import Denoiser

VERIFIER: dict[str, Any] = {  # what Qwen2.5-0.5B's published config.json says of sizes
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 151643,
}


class Loop:
    """Static buffers, and the two forward passes."""

    def __init__(self, model: Denoiser, rows: int, prompt: int, tokens: int) -> None:
        network = model.network
        arch, device = network.arch, network.device
        total = prompt + tokens
        shape = (rows, total, arch.kv_heads, arch.head_dim)
        self.network, self.rows, self.prompt = network, rows, prompt
        self.key, self.value = ([network.embed.weight.new_zeros(shape) for _ in range(arch.layers)] for _ in range(2))
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.places = torch.arange(total, device=device)
        self.ids = torch.randint(arch.vocab, (rows, prompt), device=device)

    def read(self) -> None:
        """The prompt; leaves the first token."""
        where = self.places[: self.prompt]
        self.position.fill_(self.prompt - 1)
        causal = (where[None] <= where[:, None]).expand(self.rows, -1, -1)
        self._pass(self.ids, where, causal, self.prompt)

    def step(self) -> None:
        """One more token."""
        seen = (self.places <= self.position).expand(self.rows, -1)
        self._pass(self.token, self.position, seen, len(self.places))

    def _pass(self, ids: Tensor, where: Tensor, keys: Tensor, extent: int) -> None:
        network = self.network
        hidden, rotary = network.embed(ids), network.rotary[where][None]
        for index, block in enumerate(network.blocks):
            query, key, value = block.qkv(hidden, rotary)  # type: ignore[operator]
            self.key[index].index_copy_(1, where, key)
            self.value[index].index_copy_(1, where, value)
            stored = self.key[index][:, :extent], self.value[index][:, :extent]
            hidden = hidden + block.attend(query, *stored, keys)  # type: ignore[operator]
            hidden = hidden + block.mlp(hidden)  # type: ignore[operator]
        self.token.copy_(network.logits(hidden[:, -1]).argmax(-1, keepdim=True))
        self.position.add_(1)


@torch.no_grad()
def decode(model: Denoiser, rows: int, prompt: int, tokens: int) -> dict[str, Any]:
    """Seconds for ``tokens`` tokens of each row behind ``prompt`` tokens."""
    device = model.network.device
    if tokens > 2048 or prompt + tokens >= len(model.network.rotary):
        raise ValueError(f"{prompt} + {tokens} tokens are more than the rotary table has")
    loop = Loop(model, rows, prompt, tokens + 1)
    step = _graphed(loop, device)
    for timed in (False, True):
        devices.synchronise(device)
        began = time.perf_counter()
        loop.read()
        devices.synchronise(device)
        first = time.perf_counter()
        for _ in range(tokens - 1 if timed else min(4, tokens - 1)):
            step()
        devices.synchronise(device)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "prompt_seconds": first - began, "steps": tokens, "graph": device.type == "cuda"}


def _graphed(loop: Loop, device: torch.device) -> Any:
    if device.type != "cuda":
        return loop.step
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        loop.read()
        loop.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop.step()
    return graph.replay


def verifier(folder: str, device: torch.device) -> str:
    """A folder with a causal model of random weights at the shape of Qwen2.5-0.5B; made once."""
    path = Path(folder) / "verifier"
    if not (path / "config.json").is_file():
        path.mkdir()
        weights = {
            name: torch.ones(shape) if "norm" in name else torch.randn(shape, device=device) * 0.02
            for name, shape in _shapes(VERIFIER).items()
        }
        save_file({name: w.to(torch.bfloat16).cpu() for name, w in weights.items()}, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(VERIFIER), encoding="utf-8")
    return str(path)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint of that family."""
    width, ffn = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (ffn, width),
        "mlp.up_proj.weight": (ffn, width),
        "mlp.down_proj.weight": (width, ffn),
        "self_attn.o_proj.weight": (width, width),
    }
    for part, size in (("q", width), ("k", kv), ("v", kv)):
        layer |= {f"self_attn.{part}_proj.weight": (size, width), f"self_attn.{part}_proj.bias": (size,)}
    found = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for index in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return found
