"""A causal model of the same shape beside the diffusion model, and a verifier of half a billion parameters.

The baseline is a loop over the layers of the same network with a causal mask: one forward pass for the prompt, then
one graph a token, with static keys and values. What it says is worth nothing, how long it takes is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import device as devices
import torch
from torch import Tensor

from unmask.models.denoiser import Denoiser

VERIFIER = {  # the sizes of Qwen2.5-0.5B's published config.json
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
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
    from transformers import Qwen2Config, Qwen2ForCausalLM

    path = Path(folder) / "verifier"
    if not (path / "config.json").is_file():
        config = Qwen2Config(**VERIFIER, dtype="bfloat16")
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with device:
                network = Qwen2ForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        network.save_pretrained(path)
    return str(path)
