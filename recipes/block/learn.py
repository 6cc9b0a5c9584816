"""Train the bundled block model: the weights of ``unmask-tiny`` under three kinds of visibility in turn.

    python recipes/block/learn.py --run runs/block --minutes 75 --threads 1

Everything that is not said here is as in ``recipes/tiny/train.py``: it resumes, and ``mix.json`` steers it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny"))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from data import DEFAULT_MIX, encode
from decode import Decoded, by_block, by_order
from evaluate import measure
from folder import read, write
from model import TinyLLaDA, load
from streams import SHARES, Batch, Streams
from train import Run, parse, train

from unmask.tasks import FAMILIES, Problem, problems


class BlockRun(Run):
    """A training run with a mixture of visibilities."""

    mix: ClassVar[dict[str, float]] = {**DEFAULT_MIX, **SHARES, "facts": 0.03, "echo": 0.04, "wide": 0.02}
    batches_of = Streams

    def __init__(self, args: Any) -> None:
        self.losses: dict[str, list[float]] = defaultdict(list)
        super().__init__(args)

    def train_step(self, batch: Batch) -> float:  # type: ignore[override]
        loss = super().train_step(batch.tensors)
        self.losses[batch.kind].append(loss)
        return loss

    def details(self) -> dict[str, Any]:
        """The mean loss of each kind of visibility."""
        row = {kind: round(sum(values) / len(values), 4) for kind, values in sorted(self.losses.items())}
        self.losses.clear()
        return row

    def first_model(self) -> TinyLLaDA:
        """The bundled model, or a block model already trained."""
        block = "block_size" in json.loads((self.args.init / "config.json").read_text(encoding="utf-8"))
        return read(self.args.init) if block else load(self.args.init)

    def export(self) -> None:
        """Write the folder that ships."""
        write(self.model, self.args.tokenizer, self.args.run / "export")

    @torch.inference_mode()
    def evaluate(self) -> None:
        """Answers to problems of the valid split, under each kind of visibility."""
        self.evaluations += 1
        for name in FAMILIES:
            if name == "multi" and self.evaluations % 2:
                continue
            items = problems(name, "valid", 16 if name == "multi" else 50, seed=self.step)
            length = 256 if name == "multi" else 64
            prompts = [encode(self.tokenizer, self.batches.ids, p.prompt) for p in items]
            self.model.eval()
            block = by_block(self.model, self.batches.ids, prompts, length, Streams.block, 0.9)
            row = {"valid": name, "n": len(items), "block": self._right(items, block)}
            row["block_passes"] = round(sum(block.passes) / len(items), 1)
            if name != "multi":
                row["order"] = self._right(items, by_order(self.model, self.batches.ids, prompts, length))
            row["full"] = measure(self.model, self.tokenizer, items, length, 0.9)["accuracy"]
            self.log(row)
        self.model.train()

    def _right(self, items: list[Problem], decoded: Decoded) -> float:
        texts = [self.tokenizer.decode(answer) for answer in decoded.answers]
        return sum(FAMILIES[p.family].check(p, t) for p, t in zip(items, texts, strict=True)) / len(items)


if __name__ == "__main__":
    options = parse("Train the bundled block model.", "runs/block")
    options.init = options.init or Path("src/unmask/assets/tiny")
    train(BlockRun, options)
