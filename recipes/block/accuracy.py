"""Measure a block model: whole-answer accuracy of each family, under each kind of visibility.

    python recipes/block/accuracy.py --model src/unmask/assets/tiny-block --split valid -n 100

By the trainer's own decoders, which share no code with the library. ``block`` is vanilla decoding: blocks from left to
right, one token a forward pass, the most probable first; ``order`` decodes from left to right; ``full`` is decoded as
``unmask-tiny`` is, in blocks of 32 that see everything.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny"))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from data import Ids, encode, load_tokenizer
from decode import Decoded, by_block, by_order
from evaluate import decode
from folder import read

from unmask.measure.stats import wilson
from unmask.tasks import FAMILIES, problems

KINDS = ("block", "order", "full")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the accuracy of a block model.")
    parser.add_argument("--model", type=Path, default=Path("src/unmask/assets/tiny-block"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:2])
    parser.add_argument("--split", choices=("train", "valid", "test"), default="valid")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--threshold", type=float, help="commit every token above it (default: one a forward pass)")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers of each family")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    model, tokenizer = read(args.model).eval(), load_tokenizer(args.model)
    ids, block = Ids.of(tokenizer), json.loads((args.model / "config.json").read_text(encoding="utf-8"))["block_size"]
    decoders: dict[str, Callable[[list[list[int]]], Decoded]] = {
        "block": lambda prompts: by_block(model, ids, prompts, args.gen_length, block, args.threshold),
        "order": lambda prompts: by_order(model, ids, prompts, args.gen_length),
        "full": lambda prompts: Decoded(*decode(model, ids, prompts, args.gen_length, args.threshold)),
    }
    for kind in args.kinds:
        for name in args.families:
            began, right, passes, failures = time.perf_counter(), 0, 0, []
            items = problems(name, args.split, args.n, args.seed)
            for i in range(0, len(items), args.batch):
                part = items[i : i + args.batch]
                decoded = decoders[kind]([encode(tokenizer, ids, p.prompt) for p in part])
                passes += sum(decoded.passes)
                for problem, answer in zip(part, decoded.answers, strict=True):
                    text = tokenizer.decode(answer)
                    good = FAMILIES[name].check(problem, text)
                    right += good
                    failures += [] if good else [(problem, text)]
            low, high = wilson(right, len(items))
            row = {"kind": kind, "family": name, "split": args.split, "n": len(items), "right": right}
            row |= {"accuracy": right / len(items), "low": round(low, 4), "high": round(high, 4)}
            row |= {"passes": round(passes / len(items), 1), "threshold": args.threshold}
            print(json.dumps({**row, "seconds": round(time.perf_counter() - began, 1)}), flush=True)
            for problem, text in failures[: args.show]:
                print(f"--- {problem.prompt}\nwanted {problem.answer!r}\ngot    {text!r}")


if __name__ == "__main__":
    main()
