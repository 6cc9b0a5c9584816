"""Train the learned unmasking policy (arXiv 2512.09106) by GRPO, the shipped model being the environment.

    python recipes/policies/learned.py --out runs/learned.safetensors --minutes 11

First the network learns to imitate the rule ``confidence >= .9``, softly, on made-up blocks. Then, again and again,
eight problems of the train split are decoded eight times each, all in one batch; a response earns correct x (1 -
forwards / length) ^ alpha; what earned more than its group's mean becomes likelier. Each batch is used for one step, so
that GRPO's ratio of new to old probabilities is one and its clipping does nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import unmask
from unmask import registry
from unmask.core.policy import Policy, Wrapper
from unmask.tasks import FAMILIES, Problem, problems

NAMES = ("word_problem", "waiting_line", "sudoku", "record")
WIDTH, BLOCK, GEN_LENGTH = 128, 32, 64
Learned: Any = registry.lookup("policy", "learned")


class Live(Learned):
    """The policy with the weights of the moment."""

    weights_now: ClassVar[dict[str, Tensor]] = {}

    def network(self, device: torch.device) -> dict[str, Tensor]:
        return self.weights_now


@dataclass(frozen=True, eq=False)
class Watch(Wrapper):
    """Decodes as ``policy`` does; keeps of each forward pass the seeds ``[B]``, the network's input ``[B, 32, 3]``, and
    ``[B, 32]`` which places are real, which are masks and which were committed.
    """

    policy: Policy
    seen: list[tuple[Tensor, ...]] = field(default_factory=list)
    name = "watch"

    def decide(self, canvas: Any, prediction: Any, state: Any) -> tuple[Any, Any]:
        update, after = self.policy.decide(canvas, prediction, state)
        place = canvas.places(BLOCK)
        seen, real = Learned.inputs(canvas, prediction.confidence, place, state)
        masks, write = (
            F.pad(part, (0, 1)).gather(1, place) for part in (prediction.confidence > -torch.inf, update.write)
        )
        self.seen.append((state.seed, seen.float(), real, masks, write))
        return update, after


def fresh_weights() -> dict[str, Tensor]:
    """The network before any training."""
    parts = {
        "embed": torch.nn.Linear(3, WIDTH), "up": torch.nn.Linear(WIDTH, 4 * WIDTH),
        "down": torch.nn.Linear(4 * WIDTH, WIDTH), "head": torch.nn.Linear(WIDTH, 1),
        **{name: torch.nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value", "attention")},
        **{f"norm{i}": torch.nn.LayerNorm(WIDTH) for i in (1, 2, 3)},
    }  # fmt: skip
    return {f"{name}.{kind}": w for name, part in parts.items() for kind, w in part.named_parameters()}


def imitate(weights: dict[str, Tensor], tau: float, steps: int) -> None:
    """Supervised: the log-odds of each mask are to be twice what those of its confidence are above those of ``tau``, in
    blocks of random length, filling and confidences. Greedy, that is the rule; drawn, it tries what lies about ``tau``.
    """
    limit = torch.tensor(tau).logit()
    optimizer = torch.optim.AdamW(weights.values(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = 64
        odds = torch.randn(rows, 1) * 2 + 2 + torch.randn(rows, BLOCK) * 2.5  # about the logit of tau, and far from it
        masks = torch.rand(rows, BLOCK) < torch.rand(rows, 1)
        length = torch.randint(1, BLOCK + 1, (rows, 1)).where(torch.rand(rows, 1) < 0.2, BLOCK)
        real = torch.arange(BLOCK) < length
        sure = torch.where(masks, odds.sigmoid(), 1.0)
        seen = torch.stack([sure, masks.float(), torch.rand(rows, 1).square().expand_as(sure)], -1)
        counts = masks & real
        found, label = Learned.odds(weights, seen, real)[counts], (2 * (odds - limit)).sigmoid()[counts]
        loss = F.binary_cross_entropy_with_logits(found, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            agree = float(((found > 0) == (label > 0.5)).float().mean())
            print(json.dumps({"imitation": step + 1, "loss": loss.item(), "agree": agree}), flush=True)


def log_probability(weights: dict[str, Tensor], seen: Tensor, real: Tensor, masks: Tensor, write: Tensor) -> Tensor:
    """``[N]`` of what was committed. The likeliest position alone is what an empty draw leads to as well."""
    odds = Learned.odds(weights, seen, real)
    zero = torch.where(masks, F.logsigmoid(-odds), 0.0).sum(1)
    drawn = torch.where(masks, F.logsigmoid(torch.where(write, odds, -odds)), 0.0).sum(1)
    first = torch.where(masks, odds, -torch.inf).argmax(1, keepdim=True)
    alone = (write.sum(1) == 1) & write.gather(1, first)[:, 0]
    return torch.where(alone, torch.logaddexp(drawn, zero), drawn)


def publish(weights: dict[str, Tensor]) -> None:
    """Decode with these from now on."""
    Live.weights_now = {name: w.detach().double() for name, w in weights.items()}


def measure(model: unmask.Model, policy: Any, count: int, batch_size: int = 16) -> dict[str, list[float]]:
    """Accuracy and forwards of each family on the valid split."""
    table = {}
    for name in NAMES:
        items = problems(name, "valid", count)
        found = model.generate([p.prompt for p in items], GEN_LENGTH, policy, batch_size=batch_size)
        right = sum(FAMILIES[name].check(p, r.text) for p, r in zip(items, found, strict=True))
        table[name] = [round(right / count, 4), round(sum(r.stats.nfe for r in found) / count, 3)]
    return table


class Grpo:
    """The training run."""

    def __init__(self, model: unmask.Model, weights: dict[str, Tensor], args: argparse.Namespace) -> None:
        self.model, self.weights, self.args = model, weights, args
        self.optimizer = torch.optim.AdamW(weights.values(), lr=args.lr, weight_decay=0.0)
        self.pool = {name: problems(name, "train", 1500, args.seed + 1) for name in NAMES}
        self.draw = torch.Generator().manual_seed(args.seed)

    def choose(self) -> list[Problem]:
        """As many of each family."""
        each = self.args.problems // len(NAMES)
        picked = {name: torch.randint(len(pool), (each,), generator=self.draw) for name, pool in self.pool.items()}
        return [self.pool[name][i] for name, some in picked.items() for i in some.tolist()]

    def step(self, index: int) -> dict[str, float]:
        """Roll out, reward, one step of gradient."""
        args, chosen = self.args, self.choose()
        publish(self.weights)
        watch, many = Watch(Live()), [p for p in chosen for _ in range(args.group)]
        base = (index + 1) * 100_000
        found = self.model.generate(
            [p.prompt for p in many], GEN_LENGTH, watch, batch_size=len(many), seed=[base + i for i in range(len(many))]
        )
        right = torch.tensor([float(FAMILIES[p.family].check(p, r.text)) for p, r in zip(many, found, strict=True)])
        forwards = torch.tensor([float(r.stats.nfe) for r in found])
        reward = right * (1 - forwards / GEN_LENGTH) ** args.alpha
        groups = reward.view(-1, args.group)
        advantage = groups - groups.mean(1, keepdim=True)
        if args.normalise:
            advantage = advantage / (groups.std(1, keepdim=True) + 1e-4)
        row, *rest = (torch.cat(part) for part in zip(*watch.seen, strict=True))
        weight = advantage.flatten()[row - base]
        chance = log_probability(self.weights, *rest)
        loss = -(weight * chance).sum() / len(many)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (index + 1) / 10)
        self.optimizer.step()
        means = {"reward": reward.mean(), "accuracy": right.mean(), "forwards": forwards.mean(), "norm": norm}
        return {"update": index, **{name: round(float(value), 4) for name, value in means.items()}}

    def train(self) -> None:
        """Until the time is over."""
        started, sums = time.time(), dict[str, float]()
        for index in range(self.args.updates):
            if time.time() - started > 60 * self.args.minutes:
                break
            line = self.step(index)
            sums = {name: sums.get(name, 0.0) + value for name, value in line.items()}
            if index % 10 == 9:
                mean = {name: round(value / 10, 4) for name, value in sums.items() if name != "update"}
                print(json.dumps({"updates": index + 1, **mean, "seconds": round(time.time() - started)}), flush=True)
                sums = {}
                write(self.weights, self.args.out)


def write(weights: dict[str, Tensor], out: Path) -> None:
    """In float16: 400 KiB."""
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: w.detach().half() for name, w in weights.items()}, out, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder or hub id; default: the shipped model")
    parser.add_argument("--out", type=Path, default=Path("runs/learned.safetensors"))
    parser.add_argument("--minutes", type=float, default=11, help="of GRPO")
    parser.add_argument("--updates", type=int, default=400, help="at most")
    parser.add_argument("--imitation", type=int, default=800, help="steps of imitation")
    parser.add_argument("--tau", type=float, default=0.9, help="of the rule imitated")
    parser.add_argument("--alpha", type=float, default=3.0, help="weight of speed in the reward")
    parser.add_argument("--problems", type=int, default=8, help="per update")
    parser.add_argument("--group", type=int, default=8, help="rollouts of each problem")
    parser.add_argument(
        "--normalise", action="store_true", help="divide by the group's deviation, as GRPO does at first"
    )
    parser.add_argument("--init", type=Path, help="weights to begin with, in place of the imitation")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    print(json.dumps({name: str(value) for name, value in vars(args).items()}), flush=True)
    model, weights = unmask.load(args.model), fresh_weights()
    if args.init:
        weights = {name: w.float().requires_grad_() for name, w in load_file(args.init).items()}
    else:
        imitate(weights, args.tau, args.imitation)
    write(weights, args.out.with_name(f"{args.out.stem}_before{args.out.suffix}"))
    run = Grpo(model, weights, args)
    run.train()
    write(weights, args.out)
    for label, file in (
        ("before", args.out.with_name(f"{args.out.stem}_before{args.out.suffix}")),
        ("after", args.out),
    ):
        for sample in (True, False):
            table = measure(model, Learned(sample=sample, weights=str(file)), 60)
            print(json.dumps({"valid": label, "sample": sample, **table}), flush=True)


if __name__ == "__main__":
    main()
