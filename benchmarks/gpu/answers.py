"""The part ``answers``: what the bundled model says on this device, beside what it says on the CPU in float32."""

from __future__ import annotations

from typing import Any

import networks
import torch
from book import Book

from unmask.tasks import FAMILIES, problems

SETTINGS = {
    "vanilla": ("vanilla", "none"),
    "slowfast": ("slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)", "none"),
    "slowfast + dllm": ("slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)", "dllm(kp=2,kr=1)"),
    "threshold + dual": ("threshold(tau=0.9,block_length=32)", "dual"),
    "wino": ("wino(block_length=32)", "none"),
    "klass": ("klass", "none"),
}
DTYPES = ("float32", "bfloat16")
GEN_LENGTH = 64


def measure(book: Book, device: torch.device, dry: bool) -> None:
    """Compare, setting by setting; the problems of one family a batch."""
    each, families = (2, ("record",)) if dry else (16, ("word_problem", "record", "sudoku", "waiting_line"))
    found = {name: problems(name, "test", each) for name in families}
    base = networks.bundled(torch.device("cpu"), "float32")
    models = {dtype: networks.bundled(device, dtype) for dtype in DTYPES}
    for label, (policy, cache) in list(SETTINGS.items())[1 if dry else 0 : 3 if dry else None]:
        keys = {dtype: {"setting": label, "dtype": dtype, "gen_length": GEN_LENGTH, "each": each} for dtype in DTYPES}
        if all(map(book.has, keys.values())):
            continue
        if book.left < 4:
            book.write({"setting": label}, skipped=f"{book.left:.0f} s left")
            continue
        try:
            expected = _said(base, found, policy, cache)
            for dtype, key in keys.items():
                got = _said(models[dtype], found, policy, cache)
                book.write(key, policy=policy, cache=cache, **_agreement(found, expected, got))
        except Exception as error:  # one setting must not cost the others
            book.write({"setting": label}, failed=f"{type(error).__name__}: {error}"[:600])


def _said(model: Any, found: dict[str, Any], policy: str, cache: str) -> dict[str, Any]:
    return {
        name: model.generate([p.prompt for p in some], GEN_LENGTH, policy, cache, batch_size=16)
        for name, some in found.items()
    }


def _agreement(found: dict[str, Any], expected: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """Answers that are the same, token for token and in number of forward passes, and how many are right."""
    n = same = passes = right = right_cpu = 0
    for name, some in found.items():
        for problem, ours, theirs in zip(some, got[name], expected[name], strict=True):
            n += 1
            same += list(ours.tokens) == list(theirs.tokens)
            passes += ours.stats.nfe == theirs.stats.nfe
            right += FAMILIES[name].check(problem, ours.text)
            right_cpu += FAMILIES[name].check(problem, theirs.text)
    return {"n": n, "same_tokens": same, "same_passes": passes, "right": right, "right_on_cpu": right_cpu}
