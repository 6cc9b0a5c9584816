"""Train the autoregressive verifier of APD: the diffusion model's tokenizer and data, a causal model of four layers.

    python recipes/tiny/verifier.py --minutes 40

It begins with four layers of the shipped diffusion model, which know the words and how to copy, learns to predict the
next token of the answers, and is written as a ``LlamaForCausalLM`` folder. Everything else is as in ``train.py``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from data import DEFAULT_MIX, Batches
from model import TinyLLaDA, load
from safetensors.torch import save_file
from train import Run, parse, train

from unmask.tasks import FAMILIES, problems

LAYERS = (0, 1, 3, 5)  # of the diffusion model
NAMES = {
    "attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "ff_out": "mlp.down_proj",
}  # fmt: skip


class Sentences(Batches):
    """Whole answers, to be predicted one token after the other, up to the first end of text."""

    def _build(self, rows: list[tuple[list[int], list[int]]], length: int) -> tuple[torch.Tensor, ...]:
        text = np.full((len(rows), length), self.ids.eos, dtype=np.int64)
        weights = np.zeros((len(rows), length - 1), dtype=np.float32)
        for i, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            text[i, :end] = prompt + answer
            weights[i, len(prompt) - 1 : end] = 1.0
        return torch.from_numpy(text[:, :-1].copy()), torch.from_numpy(text[:, 1:].copy()), torch.from_numpy(weights)


class VerifierRun(Run):
    """A training run of the causal model."""

    mix: ClassVar[dict[str, float]] = {**DEFAULT_MIX, "wide": 0.0, "loose": 0.0, "facts": 0.05, "echo": 0.02}
    batches_of = Sentences

    def first_model(self) -> TinyLLaDA:
        """Some layers of the diffusion model, from now on causal."""
        source = load(self.args.init)
        model = TinyLLaDA({**source.config, "n_layers": len(LAYERS)}, causal=True)
        weights = source.state_dict()
        for name in list(weights):
            if ".blocks." in name:
                weight, (head, _, rest) = weights.pop(name), name.partition(".blocks.")
                layer, _, part = rest.partition(".")
                if int(layer) in LAYERS:
                    weights[f"{head}.blocks.{LAYERS.index(int(layer))}.{part}"] = weight
        model.load_state_dict(weights)
        return model

    def export(self) -> None:
        """Write the folder of a ``LlamaForCausalLM`` in bfloat16, with the tokenizer."""
        write_llama(self.model, self.args.run / "export")
        for file in self.args.tokenizer.glob("*token*.json"):
            shutil.copy(file, self.args.run / "export" / file.name)

    @torch.inference_mode()
    def evaluate(self) -> None:
        """Greedy answers to problems of the valid split."""
        self.evaluations += 1
        for name, family in FAMILIES.items():
            if name == "multi" and self.evaluations % 2:
                continue
            items = problems(name, "valid", 12 if name == "multi" else 40, seed=self.step)
            right = sum(family.check(p, self.answer(p.prompt, 256 if name == "multi" else 64)) for p in items)
            self.log({"valid": name, "n": len(items), "accuracy": right / len(items)})

    def answer(self, prompt: str, gen_length: int) -> str:
        """The likeliest token, again and again."""
        ids = self.batches.ids
        text = [ids.bos, ids.user, *self.tokenizer.encode(prompt).ids, ids.assistant]
        start = len(text)
        while len(text) < start + gen_length:
            token = int(self.model(torch.tensor([text], device=self.args.device))[0, -1].argmax())
            if token == ids.eos:
                break
            text.append(token)
        return self.tokenizer.decode(text[start:])


def llama_names(model: TinyLLaDA) -> dict[str, str]:
    """From the names of the model's parameters to Llama's."""
    outer = {"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "transformer.ff_out": "lm_head"}
    names = {}
    for name in model.state_dict():
        module = name.removesuffix(".weight")
        if ".blocks." in module:
            _, _, layer, part = module.split(".")
            target = f"model.layers.{layer}.{NAMES[part]}"
        else:
            target = outer[module]
        names[name] = f"{target}.weight"
    return names


def write_llama(model: TinyLLaDA, folder: Path, **other: Any) -> None:
    """``config.json`` (with ``other`` keys) and ``model.safetensors`` under the names of ``transformers``."""
    folder.mkdir(parents=True, exist_ok=True)
    own = model.config
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": own["d_model"], "intermediate_size": own["mlp_hidden_size"], "hidden_act": "silu",
        "num_hidden_layers": own["n_layers"], "num_attention_heads": own["n_heads"],
        "num_key_value_heads": own["n_kv_heads"], "head_dim": own["d_model"] // own["n_heads"],
        "rms_norm_eps": own["rms_norm_eps"], "rope_theta": own["rope_theta"],
        "max_position_embeddings": own["max_sequence_length"], "vocab_size": own["embedding_size"],
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "use_cache": True,
        "bos_token_id": None, "eos_token_id": own["eos_token_id"], "pad_token_id": own["pad_token_id"],
        **other,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    state = model.state_dict()
    weights = {
        theirs: state[ours].detach().to(torch.bfloat16).contiguous() for ours, theirs in llama_names(model).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def options() -> argparse.Namespace:
    """Command line: as for the diffusion model, beginning with the shipped one."""
    args = parse("Train the verifier of APD.", "runs/verifier")
    args.init = args.init or Path("src/unmask/assets/tiny")
    return args


if __name__ == "__main__":
    train(VerifierRun, options())
