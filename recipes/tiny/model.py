"""The training-side model: a LLaDA block stack under LLaDA's own weight names, quick to train on a CPU.

Attention is written out in the training path (the backward of PyTorch's fused attention is slow on
CPUs) and logits are computed for the requested positions only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 256,
    "embedding_dropout": 0.0,
    "embedding_size": 0,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "cpu",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "max_sequence_length": 2048,
    "mlp_hidden_size": 512,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 6,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 10000.0,
    "scale_logits": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "vocab_size": 0,
    "weight_tying": False,
}


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, the two halves of a head rotated against each other."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The gated unit of the feed-forward layer."""
    return F.silu(gate) * up


POINTWISE: dict[str, Any] = {"norm": norm, "rotate": rotate, "swiglu": swiglu}


def compile_pointwise() -> None:
    """Fuse the three functions above: they cost as much as the matrix products when they are not."""
    torch._dynamo.config.cache_size_limit = 64
    for name, function in (("norm", norm), ("rotate", rotate), ("swiglu", swiglu)):
        POINTWISE[name] = torch.compile(function, dynamic=True)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return POINTWISE["norm"](x, self.weight, self.eps)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, named as in LLaDA's ``llama`` block."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        d, hidden, eps = config["d_model"], config["mlp_hidden_size"], config["rms_norm_eps"]
        self.heads = config["n_heads"]
        self.attn_norm, self.ff_norm = RMSNorm(d, eps), RMSNorm(d, eps)
        self.q_proj, self.k_proj = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.v_proj, self.attn_out = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.ff_proj, self.up_proj = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden, bias=False)
        self.ff_out = nn.Linear(hidden, d, bias=False)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, heads, T, D]``, the first two rotated."""
        batch, length, d = x.shape
        shape = (batch, length, self.heads, d // self.heads)
        q, k, v = (proj(x).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return POINTWISE["rotate"](q, cos, sin), POINTWISE["rotate"](k, cos, sin), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """What the queries take from the values, ``[B, T, C]``."""
        if torch.is_grad_enabled():
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            scores = scores if bias is None else scores.masked_fill(~bias, -torch.inf)
            out = torch.softmax(scores, dim=-1, dtype=scores.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).flatten(2)

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward layer, with the stream it adds to."""
        h = self.ff_norm(x)
        return x + self.ff_out(POINTWISE["swiglu"](self.ff_proj(h), self.up_proj(h)))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, keep: Tensor | None) -> Tensor:
        """``keep`` drops all other positions once attention has read them."""
        mixed = self.attend(*self.qkv(self.attn_norm(x), cos, sin), bias)
        if keep is not None:
            x, mixed = x[keep], mixed[keep]
        return self.feed(x + self.attn_out(mixed))


class TinyLLaDA(nn.Module):
    """Transformer with an untied head, bidirectional unless ``causal``; parameters carry LLaDA's names."""

    def __init__(self, config: dict[str, Any], *, causal: bool = False) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        d, vocab = config["d_model"], config["embedding_size"]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, d),
                "blocks": nn.ModuleList(Block(config) for _ in range(config["n_layers"])),
                "ln_f": RMSNorm(d, config["rms_norm_eps"]),
                "ff_out": nn.Linear(d, vocab, bias=False),
            }
        )
        head = d // config["n_heads"]
        inverse = config["rope_theta"] ** -(torch.arange(0, head, 2).float() / head)
        angles = torch.outer(torch.arange(config["max_sequence_length"]).float(), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Small normal weights; the projections back into the stream smaller with depth."""
        scale = (2 * self.config["n_layers"]) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                std = 0.5 if "wte" in name else weight.shape[1] ** -0.5
                back = name.endswith(("attn_out.weight", "ff_out.weight")) and "blocks" in name
                nn.init.normal_(weight, std=std * (scale if back else 1.0))
        nn.init.normal_(self.transformer["ff_out"].weight, std=0.02)

    def forward(
        self, ids: Tensor, keep: Tensor | None = None, visible: Tensor | None = None, position: Tensor | None = None
    ) -> Tensor:
        """Logits at the positions ``keep``.

        Args:
            ids: ``[B, T]``.
            keep: ``[B, T]``, whose logits are wanted; None: all.
            visible: ``[B, T]`` keys that count (padding does not), or ``[B, T, T]`` which query sees which key.
            position: ``[B, T]`` places in the text; None: 0 to T - 1.
        """
        x = self.transformer["wte"](ids)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            x = x.bfloat16()
        if position is None:
            cos, sin = (table[: ids.shape[1]].to(x.dtype) for table in (self.cos, self.sin))
        else:
            cos, sin = (table[position].unsqueeze(1).to(x.dtype) for table in (self.cos, self.sin))
        bias = visible
        if visible is not None:
            bias = visible[:, None] if visible.ndim == 3 else visible[:, None, None, :]
        if self.causal:
            past = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
            bias = past if bias is None else bias & past
        *blocks, last = self.transformer["blocks"]
        for block in blocks:
            x = block(x, cos, sin, bias, None)
        x = last(x, cos, sin, bias, keep)
        return self.transformer["ff_out"](self.transformer["ln_f"](x))


def export(model: TinyLLaDA, folder: Path) -> None:
    """Write ``config.json`` and bfloat16 ``model.safetensors`` as a LLaDA checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    weights = {f"model.{name}": w.detach().to(torch.bfloat16).contiguous() for name, w in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> TinyLLaDA:
    """Read an exported checkpoint back, in float32."""
    model = TinyLLaDA(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): w.float() for name, w in weights.items()})
    return model
