"""What a constraint adds to a forward pass, at the vocabulary of LLaDA-8B.

    python -m benchmarks.constraints [--model]

A schema of ten keys, 126,464 token ids, a response of 256 positions of which 32 are predicted, one thread. The tokens
are the most frequent pieces of Python's standard library, so that they are of the kind and length of a real vocabulary.
``--model`` also times the layers and the head of LLaDA-8B on this machine (random weights; 6 GB).
"""

from __future__ import annotations

import re
import statistics
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from unmask.constraints.automaton import Automaton, compiled
from unmask.constraints.batch import Constraints
from unmask.constraints.dfa import automaton
from unmask.constraints.schema import schema
from unmask.constraints.vocabulary import Vocabulary
from unmask.core.canvas import Canvas, ModelSpec
from unmask.core.heap import keep_freed
from unmask.core.predict import read
from unmask.core.protocols import Sampling

VOCAB, LENGTH, WINDOW, MASK, EOS = 126_464, 256, 32, 126_336, 126_081
SPEC = ModelSpec(mask=MASK, eos=(EOS,), pad=EOS, vocab=VOCAB, limit=VOCAB, context=4096)
CASES = ((1, 0.0, 0), (1, 0.0, 128), (1, 1.0, 0), (1, 1.0, 128), (8, 0.0, 0))  # rows, temperature, committed tokens
_PIECE = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d]+| ?\d{1,3}| ?[^\s\w]+|\s+(?!\S)|\s+")
TEN_KEYS = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "city": {"type": "string", "maxLength": 40},
        "country": {"enum": ["France", "Germany", "Italy", "Japan", "Kenya", "Peru", "Spain"]},
        "height": {"type": "number", "minimum": 0, "maximum": 3},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "active": {"type": "boolean"},
        "born": {"type": "string", "format": "date"},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "number": {"type": ["integer", "null"]}},
            "required": ["street"],
        },
    },
    "required": ["name", "age", "email", "country", "active", "address"],
    "additionalProperties": False,
}


def pieces(count: int) -> Vocabulary:
    """So many tokens: all bytes, and the most frequent pieces and parts of words of the standard library."""
    found: Counter[str] = Counter()
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py")):
        if "site-packages" not in file.parts:
            found.update(_PIECE.findall(file.read_text(encoding="utf-8", errors="ignore")))
    for word, times in list(found.items()):
        for size in range(2, min(len(word), 9)):
            found[word[:size]] += times
            found[word[-size:]] += times
    words = [bytes([i]) for i in range(256)]
    words += [w.encode() for w, _ in found.most_common(2 * count) if len(w.encode()) > 1]
    free = [i for i in range(count) if i not in (MASK, EOS)]
    return Vocabulary.of(dict(zip(free, dict.fromkeys(words), strict=False)), VOCAB, (EOS,))


def sampling(rows: int, temperature: float) -> Sampling:
    """The parameters of rows at one temperature."""
    heat, seed = torch.full((rows,), temperature, dtype=torch.float64), torch.arange(rows)
    return Sampling(heat, heat * 0 + 1, seed * 0, seed, samples=temperature > 0, filters=False)


class Pass:
    """One forward pass of some rows behind so many tokens that are committed: all that follows the logits."""

    def __init__(self, made: Automaton, rows: int, temperature: float, committed: int) -> None:
        self.rows, self.sampling = rows, sampling(rows, temperature)
        self.constraints = Constraints.of([made] * rows, [made.start] * rows, torch.device("cpu"))
        self.canvas = Canvas.blank([[0]] * rows, [LENGTH] * rows, SPEC)
        draw = torch.Generator().manual_seed(committed)
        done = 0
        while done < committed:  # a text to go on from, drawn window by window
            self.lines(done, draw)
            found = self.with_path()
            tokens = self.canvas.tokens.clone()
            tokens[self.row, self.position] = found["token"]
            self.canvas = replace(self.canvas, tokens=tokens)
            done += WINDOW
        self.lines(done, draw)

    def lines(self, at: int, draw: torch.Generator) -> None:
        """The logits of the next window; ends of text are unlikely."""
        self.row = torch.arange(self.rows).repeat_interleave(WINDOW)
        self.position = torch.arange(1 + at, 1 + at + WINDOW).repeat(self.rows)
        self.step = torch.zeros(self.rows, dtype=torch.long)
        self.logits = torch.randn(len(self.row), VOCAB, generator=draw) * 3
        self.logits[:, MASK], self.logits[:, EOS] = -torch.inf, -50.0

    def plain(self) -> dict[str, torch.Tensor]:
        """What is done without a constraint."""
        return read(self.logits, self.sampling, frozenset(), self.row, self.position, self.step[self.row])

    def with_path(self) -> dict[str, torch.Tensor]:
        """What is done with one."""
        search = self.constraints.search(self.canvas, self.sampling, frozenset(), self.row, self.position, self.step)
        found = self.plain()
        search.add(slice(0, len(self.logits)), self.logits, found)
        search.finish()
        return found


def medians(*calls: Callable[[], object], rounds: int = 9) -> list[float]:
    """Milliseconds of the processor that each takes, all in turn."""
    spent: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, own in zip(calls, spent, strict=True):
            began = time.process_time()
            call()
            own.append(1000 * (time.process_time() - began))
    return [statistics.median(own) for own in spent]


def layers_and_head() -> float:
    """Seconds of a forward pass of LLaDA-8B's shape: the layers' share of two small models, times 32."""
    from unmask import registry
    from unmask.core.protocols import Ask
    from unmask.models.random import SHAPES, random_denoiser
    from unmask.models.weights import Checkpoint

    found = []
    for layers in (1, 3):
        config = {"torch_dtype": "bfloat16", **SHAPES["llada-8b"], "n_layers": layers}
        model = random_denoiser(Checkpoint(Path("llada-8b"), config), torch.device("cpu"), torch.bfloat16)
        canvas = Canvas.blank([[0]], [LENGTH - 1], model.spec)
        cache, ask = registry.cache("none"), Ask(canvas.masked & (canvas.position <= WINDOW))
        state = model.init(canvas, cache)
        call = partial(model, canvas, ask, cache, state, sampling(1, 0.0), torch.zeros(1).long())
        found += medians(call, rounds=3)
    return (found[0] + 31 * (found[1] - found[0]) / 2) / 1000


def main() -> None:
    """Print the figures."""
    keep_freed()  # as the command line does
    torch.set_num_threads(1)
    words = pieces(VOCAB)
    began = time.process_time()
    text = automaton(schema(TEN_KEYS))
    middle = time.process_time()
    made = compiled(text, words)
    ended = time.process_time()
    states, classes = made.step.shape
    print(f"{len(words.ids)} tokens; {len(text.table)} states over bytes in {middle - began:.2f} s;")
    print(f"{states} states, {classes} classes, {len(made.targets)} transitions over tokens in {ended - middle:.2f} s")
    print("Milliseconds of one processor behind the model, for a forward pass:")
    print("| rows | temperature | committed | read | read and path | path |\n|---|---|---|---|---|---|")
    added = []
    for rows, temperature, committed in CASES:
        one = Pass(made, rows, temperature, committed)
        plain, path = medians(one.plain, one.with_path)
        added += [path - plain] * (rows == 1)
        print(f"| {rows} | {temperature:g} | {committed} | {plain:.1f} | {path:.1f} | {path - plain:.1f} |", flush=True)
    if "--model" in sys.argv:
        whole = layers_and_head()
        share = max(added) / whole / 10
        print(f"LLaDA-8B: {whole:.1f} s for a forward pass of {LENGTH} positions; the path adds {share:.2f} %")


if __name__ == "__main__":
    main()
