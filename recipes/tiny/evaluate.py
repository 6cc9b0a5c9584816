"""Measure a checkpoint: whole-answer accuracy of each family, decoded one token at a time or by confidence.

    python recipes/tiny/evaluate.py --model src/unmask/assets/tiny --split valid --n 100

This is the trainer's own small decoder (semi-autoregressive blocks of 32, greedy); it shares no
code with the library, so that each can be held against the other.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from data import BLOCK, Ids, encode, load_tokenizer
from model import TinyLLaDA, load
from tokenizers import Tokenizer
from torch import Tensor

from unmask.measure.stats import wilson
from unmask.tasks import FAMILIES, Problem, problems


@torch.no_grad()
def decode(
    model: TinyLLaDA, ids: Ids, prompts: list[list[int]], gen_length: int, threshold: float | None
) -> tuple[list[list[int]], list[int]]:
    """Greedy answers and the forwards each took; ``threshold`` commits every token above it, None the best one only."""
    starts = torch.tensor([len(prompt) for prompt in prompts])
    canvas = torch.full((len(prompts), int(starts.max()) + gen_length), ids.eos)
    for row, prompt in enumerate(prompts):
        canvas[row, : len(prompt)] = torch.tensor(prompt)
        canvas[row, len(prompt) : len(prompt) + gen_length] = ids.mask
    columns = torch.arange(canvas.shape[1])
    visible = columns < (starts + gen_length)[:, None]
    forwards = torch.zeros(len(prompts), dtype=torch.long)
    for offset in range(0, gen_length, BLOCK):
        lower, upper = starts[:, None] + offset, starts[:, None] + offset + BLOCK
        block = (columns >= lower) & (columns < torch.minimum(upper, starts[:, None] + gen_length))
        while True:
            ended = (block_prefix_eos(canvas, starts, ids)) | ~((canvas == ids.mask) & block).any(1)
            rows = torch.nonzero(~ended).flatten()
            if not len(rows):
                break
            commit(model, ids, canvas, rows, block, visible, threshold)
            forwards[rows] += 1
    answers = []
    for row, start in enumerate(starts.tolist()):
        answer = canvas[row, start : start + gen_length].tolist()
        answers.append(answer[: answer.index(ids.eos)] if ids.eos in answer else answer)
    return answers, forwards.tolist()


def block_prefix_eos(canvas: Tensor, starts: Tensor, ids: Ids) -> Tensor:
    """Rows whose answer is complete: an end token with no mask before it."""
    columns = torch.arange(canvas.shape[1])
    response = columns >= starts[:, None]
    width = canvas.shape[1]
    first_eos = torch.where((canvas == ids.eos) & response, columns, width).amin(1)
    first_mask = torch.where(canvas == ids.mask, columns, width).amin(1)
    return first_eos < first_mask


def commit(
    model: TinyLLaDA,
    ids: Ids,
    canvas: Tensor,
    rows: Tensor,
    block: Tensor,
    visible: Tensor,
    threshold: float | None,
) -> None:
    """One forward over ``rows``; write the chosen tokens into the canvas."""
    part = canvas[rows]
    open_ = (part == ids.mask) & block[rows]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(part, keep=open_, visible=visible[rows]).float()
    logits[:, ids.mask] = -torch.inf
    best, token = logits.softmax(-1).max(-1)
    confidence = torch.zeros(part.shape).masked_scatter(open_, best)
    tokens = torch.zeros_like(part).masked_scatter(open_, token)
    chosen = torch.zeros_like(open_).scatter_(1, confidence.argmax(1, keepdim=True), True)
    if threshold is not None:
        chosen |= open_ & (confidence > threshold)
    canvas[rows] = torch.where(chosen, tokens, part)


def measure(
    model: TinyLLaDA,
    tokenizer: Tokenizer,
    items: list[Problem],
    gen_length: int,
    threshold: float | None,
    batch: int = 40,
) -> dict[str, Any]:
    """Accuracy, its Wilson interval and the mean number of forwards on ``items`` (of one family)."""
    ids, right, forwards, failures = Ids.of(tokenizer), 0, 0, []
    model.eval()
    family = FAMILIES[items[0].family]
    for i in range(0, len(items), batch):
        part = items[i : i + batch]
        answers, used = decode(model, ids, [encode(tokenizer, ids, p.prompt) for p in part], gen_length, threshold)
        forwards += sum(used)
        for problem, answer in zip(part, answers, strict=True):
            text = tokenizer.decode(answer)
            good = family.check(problem, text)
            right += good
            if not good:
                failures.append((problem.prompt, problem.answer, text))
    low, high = wilson(right, len(items))
    numbers = {"n": len(items), "right": right, "accuracy": right / len(items), "low": low, "high": high}
    return {**numbers, "forwards": forwards / len(items), "failures": failures}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the accuracy of a tiny checkpoint.")
    parser.add_argument("--model", type=Path, default=Path("src/unmask/assets/tiny"))
    parser.add_argument("--split", choices=("train", "valid", "test"), default="valid")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--threshold", type=float, help="commit every token above it (default: one token a forward)")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers of each family")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    model, tokenizer = load(args.model), load_tokenizer(args.model)
    for name in args.families:
        began = time.perf_counter()
        items = problems(name, args.split, args.n, args.seed)
        row = measure(model, tokenizer, items, args.gen_length, args.threshold)
        failures = row.pop("failures")
        settings = {"family": name, "split": args.split, "gen_length": args.gen_length, "threshold": args.threshold}
        print(json.dumps({**settings, **row, "seconds": round(time.perf_counter() - began, 1)}), flush=True)
        for prompt, answer, text in failures[: args.show]:
            print(f"--- {prompt}\nwanted {answer!r}\ngot    {text!r}")


if __name__ == "__main__":
    main()
