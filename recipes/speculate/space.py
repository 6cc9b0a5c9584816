"""Train what the drafter ``space`` adds to a causal model: the mask's embedding, a small network behind each layer.

python recipes/speculate/space.py src/unmask/assets/drafters/space.safetensors --minutes 10

The target is frozen. A problem of the train split and its answer are read with groups of masks behind random places of
the answer; a group sees what stands before it and its own masks, and mask j of a group learns the token j + 1 places
behind the group's last token (the token between is what the target itself says there).
"""

from __future__ import annotations

import argparse
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import unmask
from unmask import registry
from unmask.tasks import FAMILIES, problems

GROUPS, K, HIDDEN, ROWS = 6, 4, 64, 4


def batch(
    lm: unmask.CausalLM, draw: random.Random, pool: list[tuple[list[int], list[int]]]
) -> tuple[torch.Tensor, ...]:
    """Tokens, places, what each sees, which are masks, and what these learn (-100: nothing)."""
    rows = [draw.choice(pool) for _ in range(ROWS)]
    longest = max(len(p) + len(a) for p, a in rows)
    width = longest + GROUPS * K
    token, place = torch.zeros(ROWS, width, dtype=torch.long), torch.zeros(ROWS, width, dtype=torch.long)
    keys = torch.eye(width, dtype=torch.bool).repeat(ROWS, 1, 1)
    goal = torch.full((ROWS, width), -100)
    mask = torch.zeros(ROWS, width, dtype=torch.bool)
    mask[:, longest:] = True
    for i, (prompt, answer) in enumerate(rows):
        text = prompt + answer
        token[i, : len(text)] = torch.tensor(text)
        place[i, :longest] = torch.arange(longest)
        keys[i, :longest, :longest] |= torch.ones(longest, longest, dtype=torch.bool).tril()
        for group in range(GROUPS):
            last = draw.randrange(len(prompt) - 1, len(text) - 1)  # the group stands behind this token
            for j in range(K):
                at = longest + group * K + j
                place[i, at] = last + 1 + j
                keys[i, at, : last + 1] = True
                keys[i, at, longest + group * K : at + 1] = True
                if last + 2 + j < len(text):
                    goal[i, at] = text[last + 2 + j]
    return token, place, keys, mask, goal


def main() -> None:
    """Train for so many minutes and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--problems", type=int, default=1500, help="of each family")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    lm = unmask.load_causal(dtype="float32")
    assert lm.text is not None
    network, draw = lm.target.network, random.Random(0)
    layers, width = network.arch.layers, network.arch.width
    pool = [
        (lm.text.encode(p.prompt), [*lm.text.plain(p.answer), lm.eos[0]])
        for name in FAMILIES for p in problems(name, "train", options.problems, 1)
    ]  # fmt: skip
    space = registry.lookup("drafter", "space")
    module = __import__(space.__module__, fromlist=["adapted"])
    weights = {
        "mask": torch.randn(width) * network.embed.weight.std(),
        "down": torch.randn(layers, HIDDEN, width) * width**-0.5,
        "up": torch.zeros(layers, width, HIDDEN),
    }
    for weight in weights.values():
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(list(weights.values()), lr=3e-3, weight_decay=0.0, betas=(0.9, 0.98))
    began, step, mean = time.monotonic(), 0, 0.0
    while (gone := (time.monotonic() - began) / 60) < options.minutes:
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * max(0.05, 1 - gone / options.minutes)
        token, place, keys, mask, goal = batch(lm, draw, pool)
        lift = module.adapted(weights, mask)
        hidden = lift(-1, network.embed(token))
        rotary = network.rotary[place]
        for index, block in enumerate(network.blocks):
            hidden = hidden + block.attend(*block.qkv(hidden, rotary), keys)
            hidden = hidden + block.mlp(hidden)
            hidden = lift(index, hidden)
        logits = network.logits(hidden[mask])
        loss = F.cross_entropy(logits, goal[mask], ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimiser.step()
        right = logits.argmax(-1) == goal[mask]
        hit = [float(right[j::K][(goal[mask] >= 0)[j::K]].float().mean()) for j in range(K)]
        step, mean = step + 1, float(loss.detach()) if step == 0 else 0.95 * mean + 0.05 * float(loss.detach())
        if step % 25 == 0:
            print(
                f"step {step}, {gone:.1f} min, loss {mean:.3f}, right {' '.join(f'{h:.2f}' for h in hit)}", flush=True
            )
            save_file(
                {name: weight.detach().bfloat16().contiguous() for name, weight in weights.items()}, options.output
            )
    save_file({name: weight.detach().bfloat16().contiguous() for name, weight in weights.items()}, options.output)


if __name__ == "__main__":
    main()
