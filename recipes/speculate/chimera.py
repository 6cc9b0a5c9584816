"""Train the drafter ``chimera`` for a causal model: trigram encoder, full-context layer, a head for each drafted token.

python recipes/speculate/chimera.py src/unmask/assets/drafters/chimera.safetensors --minutes 30

The target is frozen. It reads problems of the train split with their answers once; every place of the answer then is a
place where a draft may begin, for all heads at once. Head i sees the target's hidden states up to i places before, and
the trigrams of the tokens since. It learns the target's own distribution (Kullback-Leibler), and its hidden state there
(mean square of the normalised ones, as the paper does).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import unmask
from unmask import registry
from unmask.tasks import FAMILIES, problems

CHIMERA = sys.modules[registry.lookup("drafter", "chimera").__module__]
Weights = dict[str, torch.Tensor]
Pool = list[tuple[list[int], list[int]]]
ROWS, RATE, MATCH = 6, 3e-3, 0.3


def first_weights(lm: unmask.CausalLM, width: int, heads: int) -> Weights:
    """Random ones, with residual blocks that do nothing yet."""
    wide = lm.target.network.arch.width
    feed = 2 * width

    def normals(*shape: int) -> torch.Tensor:
        return torch.randn(*shape) * shape[-1] ** -0.5

    return {
        "token": normals(width, wide), "hidden": normals(width, wide), "mix": torch.zeros(3 * width, 3 * width),
        "trigram": normals(width, 3 * width), "qkv": normals(3 * width, width), "o": normals(width, width),
        "up": normals(2 * feed, width), "down": normals(width, feed),
        "inner": torch.zeros(heads, 2 * width, 2 * width), "outer": normals(heads, wide, 2 * width),
    }  # fmt: skip


def batch(draw: random.Random, pool: Pool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens ``[B, T]``, padded at the end, and where those stand whose next token is part of an answer."""
    seed = draw.choice(pool)
    near = [pair for pair in draw.sample(pool, 60) if abs(sum(map(len, pair)) - sum(map(len, seed))) < 40]
    rows = [seed, *near][:ROWS]
    token = torch.zeros(len(rows), max(len(p) + len(a) for p, a in rows), dtype=torch.long)
    wanted = torch.zeros_like(token, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(rows):
        token[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        wanted[i, len(prompt) : len(prompt) + len(answer) - 1] = True
    return token, wanted


@torch.no_grad()
def read(lm: unmask.CausalLM, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and last hidden states of the target."""
    network = lm.target.network
    hidden = embedded = network.embed(token)
    keys = torch.ones(token.shape[1], token.shape[1], dtype=torch.bool).tril().expand(len(token), -1, -1)
    rotary = network.rotary[None, : token.shape[1]]
    for block in network.blocks:
        hidden = hidden + block.attend(*block.qkv(hidden, rotary), keys)
        hidden = hidden + block.mlp(hidden)
    return embedded, hidden


def heads(
    lm: unmask.CausalLM, weights: Weights, token: torch.Tensor, wanted: torch.Tensor, rotary: torch.Tensor
) -> list[torch.Tensor]:
    """What every head makes of each ``wanted`` place ``[B, T]``: logits ``[N, V]`` for the token behind it."""
    return [lm.target.network.logits(made) for made in features(lm, weights, token, wanted, rotary)[0]]


def features(
    lm: unmask.CausalLM, weights: Weights, token: torch.Tensor, wanted: torch.Tensor, rotary: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of every head, what stands for the target's hidden states at the ``wanted`` places; and these themselves."""
    count = token.shape[1]
    embedded, hidden = read(lm, token)
    padded = torch.cat([embedded[:, :1], embedded[:, :1], embedded], 1)
    gram = CHIMERA.trigram(weights, torch.stack([padded[:, i : i + count] for i in range(3)], 2))
    query, key, value = CHIMERA.projected(weights, gram, rotary[None, :count])
    _, theirs, more = CHIMERA.projected(weights, CHIMERA.of_target(weights, hidden), rotary[None, :count])
    both, values = torch.cat([theirs, key], 1), torch.cat([more, value], 1)
    place, made = torch.arange(count), list[torch.Tensor]()
    for head in range(len(weights["inner"])):
        known = place[:, None] - 1 - head  # the last place whose hidden state is there
        keys = torch.cat([place <= known, (place > known) & (place <= place[:, None])], 1)
        out = CHIMERA.full_context(weights, gram, query, both, values, keys[None])
        made.append(CHIMERA.feature(weights, head, out[wanted], gram[wanted]))
    return made, hidden[wanted]


def losses(
    lm: unmask.CausalLM, weights: Weights, token: torch.Tensor, wanted: torch.Tensor, rotary: torch.Tensor
) -> tuple[torch.Tensor, list[float]]:
    """The loss of all heads, and how often each head's likeliest token is the target's."""
    network = lm.target.network
    made, own = features(lm, weights, token, wanted, rotary)
    goal = network.logits(own).softmax(-1)
    loss, hits = torch.zeros(()), list[float]()
    for one in made:
        said = network.logits(one).log_softmax(-1)
        apart = F.mse_loss(CHIMERA.normal(one), CHIMERA.normal(own))
        loss = loss + F.kl_div(said, goal, reduction="batchmean") + MATCH * apart
        hits.append(float((said.argmax(-1) == goal.argmax(-1)).float().mean()))
    return loss / len(made), hits


def main() -> None:
    """Train for so many minutes and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--problems", type=int, default=3000, help="of each family")
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--init", help="weights to go on with")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    lm = unmask.load_causal(dtype="float32")
    assert lm.text is not None
    draw = random.Random(1)
    pool = [
        (lm.text.encode(p.prompt), [*lm.text.plain(p.answer), lm.eos[0]])
        for name in FAMILIES for p in problems(name, "train", options.problems if name != "multi" else 500, 2)
    ]  # fmt: skip
    start = load_file(options.init) if options.init else first_weights(lm, options.width, options.heads)
    weights = {name: weight.float().requires_grad_(True) for name, weight in start.items()}
    rotary = CHIMERA.rotary_of(lm.target)
    optimiser = torch.optim.AdamW(list(weights.values()), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    began, step, mean = time.monotonic(), 0, dict[str, float]()
    while (gone := (time.monotonic() - began) / 60) < options.minutes:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * max(0.03, 1 - gone / options.minutes)
        loss, hits = losses(lm, weights, *batch(draw, pool), rotary)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimiser.step()
        step += 1
        for name, figure in [("loss", float(loss.detach())), *((f"head {i + 1}", hit) for i, hit in enumerate(hits))]:
            mean[name] = figure if step == 1 else 0.98 * mean[name] + 0.02 * figure
        if step % 50 == 0:
            told = ", ".join(f"{name} {figure:.3f}" for name, figure in mean.items())
            print(f"step {step}, {gone:.1f} min, {told}", flush=True)
            write(weights, options.output)
    write(weights, options.output)


def write(weights: Weights, output: str) -> None:
    """The file that ships; a reader never sees half of one."""
    part = Path(f"{output}.part")
    save_file({name: weight.detach().bfloat16().contiguous() for name, weight in weights.items()}, part)
    part.replace(output)


if __name__ == "__main__":
    main()
