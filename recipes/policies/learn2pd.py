"""Train the filter of Learn2PD (arXiv 2509.25188) on what the shipped model predicts while it decodes.

    python recipes/policies/learn2pd.py --out runs/learn2pd.safetensors

Problems of the train split are decoded one token at a time: their final tokens are the reference. Then they are decoded
again by the paper's oracle, which commits every prediction that agrees with the reference. Each forward of both runs is
an example: the confidences of the block, and at each mask whether its prediction is the reference's token.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import unmask
from unmask import registry
from unmask.core.policy import Policy
from unmask.tasks import problems

WIDTH, GEN_LENGTH = 32, 64
FAMILIES = ("word_problem", "waiting_line", "sudoku", "record")
Filter: Any = registry.lookup("policy", "learn2pd")


@dataclass(frozen=True)
class State:
    """``row [B]``: which problem; the state of the policy that decodes."""

    row: Tensor
    inner: Any


@dataclass(frozen=True, eq=False)
class Watch(Policy):
    """Decodes by the ``plain`` rule, or given the ``reference [N, L]``, as the oracle does; keeps what it sees.

    ``seen``: of each forward the problems ``[B]``, offsets in the response ``[B, 32]`` (-1: none), the filter's input,
    predicted tokens and which positions are masks, all ``[B, 32]``. Requests carry their problem's number as the seed.
    """

    reference: Tensor | None
    plain: str
    seen: list[tuple[Tensor, ...]] = field(default_factory=list)
    name = "watch"

    @cached_property
    def inner(self) -> Policy:
        return registry.policy(self.plain)

    def init(self, canvas: Any, sampling: Any) -> State:
        return State(sampling.seed, self.inner.init(canvas, sampling))

    def ask(self, canvas: Any, state: State) -> Any:
        return self.inner.ask(canvas, state.inner)

    def decide(self, canvas: Any, prediction: Any, state: State) -> tuple[Any, State]:
        update, inner = self.inner.decide(canvas, prediction, state.inner)
        place, total = canvas.places(WIDTH), canvas.tokens.shape[1]
        offset = torch.where(place < total, place - canvas.prompt[:, None], -1)
        masks = F.pad(prediction.confidence > -torch.inf, (0, 1)).gather(1, place)
        token = F.pad(prediction.token, (0, 1)).gather(1, place)
        self.seen.append((state.row, offset, Filter.inputs(prediction.confidence, place).float(), token, masks))
        if self.reference is not None:
            right = masks & (token == self.reference[state.row[:, None], offset])
            wide = torch.zeros_like(F.pad(update.write, (0, 1))).scatter(1, place, right)[:, :total]
            update = replace(update, write=wide | update.write & ~wide.any(1, keepdim=True))
        return update, replace(state, inner=inner)

    def examples(self, reference: Tensor) -> list[Tensor]:
        """Input, label and what counts, each ``[forwards, 32]``, and the problems ``[forwards]``."""
        row, offset, inputs, token, masks = (torch.cat(part) for part in zip(*self.seen, strict=True))
        return [inputs, (token == reference[row[:, None], offset]).float(), masks, row]


def collect(model: unmask.Model, count: int, tau: float, seed: int, batch_size: int) -> list[Tensor]:
    """Examples from ``count`` problems of each family; the reference commits what reaches ``tau``, else one."""
    prompts = [p.prompt for family in FAMILIES for p in problems(family, "train", count, seed)]
    numbers, parts, forwards, reference = list(range(len(prompts))), [], [], None
    for oracle in (False, True):
        watch = Watch(reference if oracle else None, f"threshold(tau={2.0 if oracle else tau},block_length={WIDTH})")
        results = model.generate(prompts, GEN_LENGTH, watch, batch_size=batch_size, seed=numbers)
        reference = torch.tensor([r.tokens for r in results]) if reference is None else reference
        forwards.append(sum(r.stats.nfe for r in results) / len(results))
        parts.append(watch.examples(reference))
    print(json.dumps({"problems": len(prompts), "forwards": forwards[0], "oracle": forwards[1]}), flush=True)
    return [torch.cat(both) for both in zip(*parts, strict=True)]


def fit(data: list[Tensor], steps: int, lr: float, seed: int) -> dict[str, Tensor]:
    """The filter: binary cross-entropy at the masks, AdamW, the learning rate falling to zero; of every 250 steps, the
    weights that do best on a tenth of the problems, held out.
    """
    torch.manual_seed(seed)
    *parts, row = data
    held, train = ([part[rows] for part in parts] for rows in (row % 10 == 9, row % 10 != 9))
    layers = {"hidden": torch.nn.Linear(WIDTH, WIDTH), "out": torch.nn.Linear(WIDTH, WIDTH)}
    weights = {f"{name}.{kind}": w for name, layer in layers.items() for kind, w in layer.named_parameters()}
    optimizer = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, least = weights, float("inf")
    for step in range(1, steps + 1):
        some = torch.randint(len(train[0]), (1024,))
        loss = loss_of(weights, *(part[some] for part in train))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            with torch.no_grad():
                held_loss = loss_of(weights, *held).item()
            if held_loss < least:
                best, least = {name: w.detach().clone() for name, w in weights.items()}, held_loss
            if step % 1000 == 0:
                print(json.dumps({"step": step, "loss": loss.item(), "held_out": held_loss}), flush=True)
    print(json.dumps({"best_held_out": least}), flush=True)
    return best


def loss_of(weights: dict[str, Tensor], inputs: Tensor, label: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy at the masks."""
    return F.binary_cross_entropy_with_logits(Filter.final(weights, inputs)[masks], label[masks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder or hub id; default: the shipped model")
    parser.add_argument("--out", type=Path, default=Path("runs/learn2pd.safetensors"))
    parser.add_argument("--problems", type=int, default=480, help="of each family")
    parser.add_argument("--tau", type=float, default=2.0, help="of the reference; above 1: one token at a time")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--examples", type=Path, help="keep the examples here, or take them from here")
    args = parser.parse_args()
    started = time.time()
    if args.examples and args.examples.exists():
        data = torch.load(args.examples)
    else:
        data = collect(unmask.load(args.model), args.problems, args.tau, args.seed, args.batch_size)
        if args.examples:
            torch.save(data, args.examples)
    share = float(data[1][data[2]].mean())
    print(json.dumps({"examples": len(data[0]), "final": share, "seconds": time.time() - started}), flush=True)
    weights = fit(data, args.steps, args.lr, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out, metadata={"format": "pt"})
    print(json.dumps({"written": str(args.out), "seconds": time.time() - started}))


if __name__ == "__main__":
    main()
