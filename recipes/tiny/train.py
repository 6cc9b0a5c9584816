"""Train the tiny checkpoint; runs on two CPU cores in about three hours, or on a GPU, and resumes after a kill.

    python recipes/tiny/train.py --minutes 170
    python recipes/tiny/train.py --init src/unmask/assets/tiny --minutes 30   # go on from the shipped weights

The learning rate warms up, stays, and decays to zero over the last ``--decay-share`` of the minutes
(counted by training time, kept across resumes). ``mix.json`` in the run folder, when there is one,
overrides the shares of the sources and is read again every 50 steps; a change is logged.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from data import DEFAULT_MIX, Batches, load_tokenizer
from evaluate import measure
from init import structured_init
from model import CONFIG, TinyLLaDA, compile_pointwise, export, load
from optimizer import Muon
from tokenizers import Tokenizer

from unmask.tasks import FAMILIES, problems

WARMUP_STEPS = 50
MUON_LR, ADAM_LR = 0.008, 0.002


def parse(description: str, run: str) -> argparse.Namespace:
    """Command line; ``run`` is the default folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", type=Path, default=Path(run), help="checkpoint, log and export go here")
    parser.add_argument("--tokenizer", type=Path, default=Path("src/unmask/assets/tiny"))
    parser.add_argument("--init", type=Path, help="start from the weights of an exported checkpoint")
    parser.add_argument("--minutes", type=float, default=170.0, help="training time in all, resumes included")
    parser.add_argument("--decay-share", type=float, default=0.2)
    parser.add_argument("--lr-scale", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="several: whichever is quickest, by turns")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (no C++ compiler needed)")
    parser.add_argument("--evaluate-every", type=float, default=8.0, help="minutes between two evaluations")
    parser.add_argument("--save-every", type=float, default=4.0, help="minutes between two checkpoints")
    return parser.parse_args()


class Threads:
    """One thread or two? With other work on the cores, two threads that wait for each other can be slower than one."""

    PROBE, PERIOD = 5, 150

    def __init__(self, choices: tuple[int, ...]) -> None:
        self.choices, self.times, self.count = choices, dict.fromkeys(choices, 0.0), 0
        torch.set_num_threads(choices[0])

    def after_step(self, seconds: float) -> None:
        """Try each choice for a few steps of every period, then keep the quickest."""
        if len(self.choices) == 1:
            return
        place, within = divmod(self.count % self.PERIOD, self.PROBE)
        if place < len(self.choices) and within:  # the first step after a switch is not representative
            self.times[self.choices[place]] += seconds
        self.count += 1
        place = self.count % self.PERIOD // self.PROBE
        if place == 0 and self.count % self.PERIOD == 0:
            self.times = dict.fromkeys(self.choices, 0.0)
        best = min(self.choices, key=lambda choice: self.times[choice])
        torch.set_num_threads(self.choices[place] if place < len(self.choices) else best)


class Run:
    """Everything a training run carries from step to step."""

    mix: ClassVar[dict[str, float]] = DEFAULT_MIX
    batches_of: type[Batches] = Batches

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.tokenizer: Tokenizer = load_tokenizer(args.tokenizer)
        self.model = self.first_model()
        self.model.to(args.device)
        hidden = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "blocks" in n]
        chosen = {id(p) for p in hidden}
        rest = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(hidden, lr=MUON_LR, weight_decay=0.01), MUON_LR),
            (torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0), ADAM_LR),
        ]
        self.step, self.tokens, self.seconds, self.evaluations = 0, 0, 0.0, 0
        self.resume()
        self.batches = self.batches_of(self.tokenizer, args.tokens, args.seed * 1_000_003 + self.step, self.mix)
        self.read_mix()

    def first_model(self) -> TinyLLaDA:
        """The model before the first step."""
        if self.args.init:
            return load(self.args.init)
        vocabulary = self.tokenizer.get_vocab_size()
        names = {"mask_token_id": "<|mdm_mask|>", "eos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>"}
        ids = {key: self.tokenizer.token_to_id(token) for key, token in names.items()}
        model = TinyLLaDA({**CONFIG, "vocab_size": vocabulary, "embedding_size": vocabulary, **ids})
        structured_init(model, self.tokenizer)
        return model

    def export(self) -> None:
        """Write the folder that ships."""
        export(self.model, self.args.run / "export")

    @property
    def checkpoint(self) -> Path:
        return self.args.run / "checkpoint.pt"

    def resume(self) -> None:
        """Take up the run where its last checkpoint left it."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.args.device)
        self.model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint (whole or not at all) and the exported folder."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        self.export()

    def read_mix(self) -> None:
        path = self.args.run / "mix.json"
        mix = {**self.mix, **json.loads(path.read_text())} if path.exists() else self.mix
        if mix != self.batches.mix:
            self.batches.mix = dict(mix)
            self.log({"mix": mix})

    def log(self, row: dict[str, Any]) -> None:
        row = {"step": self.step, "tokens": self.tokens, "minutes": round(self.seconds / 60, 2), **row}
        line = json.dumps(row)
        print(line, flush=True)
        with (self.args.run / "training_log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rate(self) -> float:
        """Warm up, stay, then decay linearly to zero at the end of the minutes."""
        left = 1.0 - self.seconds / (60 * self.args.minutes)
        return self.args.lr_scale * min(1.0, (self.step + 1) / WARMUP_STEPS, max(left, 0.0) / self.args.decay_share)

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> float:
        ids, targets, weights, *attention = (tensor.to(self.args.device) for tensor in batch)
        masked = weights > 0
        with torch.autocast(self.args.device, dtype=torch.bfloat16):
            logits = self.model(ids, masked, *attention)
        losses = F.cross_entropy(logits.float(), targets[masked], reduction="none")
        loss = (losses * weights[masked]).sum() / weights.sum()
        for optimizer, base in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = base * self.rate()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        self.step += 1
        self.tokens += ids.numel()
        return float(loss.detach())

    def details(self) -> dict[str, Any]:
        """What else a row of the log tells since the last one."""
        return {}

    def evaluate(self) -> None:
        """Decode a few problems of the valid split: by confidence for all, one token a forward where that is quick."""
        self.evaluations += 1
        for name in FAMILIES:
            if name == "multi" and self.evaluations % 2:
                continue
            items = problems(name, "valid", 12 if name == "multi" else 40, seed=self.step)
            gen_length = 256 if name == "multi" else 64
            row: dict[str, Any] = {"valid": name, "n": len(items)}
            fast = measure(self.model, self.tokenizer, items, gen_length, 0.9)
            row.update(threshold_accuracy=fast["accuracy"], threshold_forwards=round(fast["forwards"], 1))
            if name != "multi" and self.evaluations % 2 == 0:
                row["accuracy"] = measure(self.model, self.tokenizer, items, gen_length, None)["accuracy"]
            self.log(row)
        self.model.train()


def train(kind: type[Run], args: argparse.Namespace) -> None:
    """Train until the minutes are used up."""
    threads = Threads(tuple(args.threads))
    torch.set_flush_denormal(True)
    args.run.mkdir(parents=True, exist_ok=True)
    if not args.no_compile:
        compile_pointwise()
    run = kind(args)
    run.log({"parameters": sum(p.numel() for p in run.model.parameters()), "seed": args.seed, "mix": run.batches.mix})
    losses: list[float] = []
    saved = evaluated = logged = run.seconds
    stream = iter(run.batches)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    while run.seconds < 60 * args.minutes and not stopping:
        began = time.perf_counter()
        losses.append(run.train_step(next(stream)))
        seconds = time.perf_counter() - began
        run.seconds += seconds
        threads.after_step(seconds)
        if run.step % 50 == 0:
            speed = args.tokens * 50 / max(run.seconds - logged, 1e-9)
            row = {"loss": round(sum(losses) / len(losses), 4), "rate": round(run.rate(), 4), "tokens_s": int(speed)}
            run.log({**row, **run.details()})
            print(torch.get_num_threads(), threads.times, flush=True)
            losses, logged = [], run.seconds
            run.read_mix()
        if run.seconds - saved > 60 * args.save_every:
            run.save()
            saved = run.seconds
        if run.seconds - evaluated > 60 * args.evaluate_every:
            run.evaluate()
            evaluated = run.seconds
    run.save()
    if not stopping:
        run.evaluate()


if __name__ == "__main__":
    train(Run, parse("Train the tiny LLaDA checkpoint.", "runs/tiny"))
