"""Training batches: problems of the train split, put into canvases of equal length and partly masked."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from unmask.tasks import FAMILIES, Problem
from unmask.tasks import multi as multi_family
from unmask.tasks.arithmetic import random_product, random_step

LENGTHS = (
    *range(40, 80, 4), 80, 88, 96, 112, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 512, 640, 1152,
)  # fmt: skip
BLOCK = 32
EOS_WEIGHT = 0.15  # of the padding behind the first two end tokens
DEFAULT_MIX = {
    "word_problem": 0.14,
    "waiting_line": 0.3,
    "sudoku": 0.06,
    "record": 0.06,
    "multi": 0.06,
    "chain": 0.09,
    "sheet": 0.09,
    "drill": 0.04,
    "facts": 0.1,
    "echo": 0.06,
    "wide": 0.04,
    "loose": 0.2,
}


@dataclass(frozen=True)
class Ids:
    """The token ids that building a canvas needs."""

    mask: int
    eos: int
    bos: int
    user: int
    assistant: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Ids:
        names = ("<|mdm_mask|>", "<|endoftext|>", "<|startoftext|>", "<|user|>", "<|assistant|>")
        return cls(*(tokenizer.token_to_id(name) for name in names))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of an exported checkpoint."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode(tokenizer: Tokenizer, ids: Ids, prompt: str) -> list[int]:
    """A prompt inside the chat template."""
    return [ids.bos, ids.user, *tokenizer.encode(prompt).ids, ids.assistant]


def drill(rng: random.Random) -> Problem:
    """Bare equations, for training only: the facts that the other families need, densely."""
    steps = []
    for _ in range(rng.randint(3, 6)):
        steps.append(random_product(rng) if rng.random() < 0.2 else random_step(rng, rng.randint(1, 29)))
    sums = " ".join(f"{step.left}{step.symbol}{step.right}" for step in steps)
    return Problem("drill", f"Work out {sums}", "\n".join(map(str, steps)), sums)


def facts(rng: random.Random) -> Problem:
    """Equations that nobody asked for, for training only: of these, almost only the results are masked."""
    steps = []
    for _ in range(rng.randint(5, 9)):
        steps.append(random_product(rng) if rng.random() < 0.15 else random_step(rng, rng.randint(1, 29)))
    answer = "\n".join(map(str, steps))
    return Problem("facts", "Write", answer, answer)


SOURCES: dict[str, Callable[[random.Random], Problem]] = {
    **{name: family.generate for name, family in FAMILIES.items()},
    "chain": lambda rng: multi_family.chain(rng, rng.randint(2, 8)),
    "sheet": lambda rng: multi_family.sheet(rng, rng.randint(2, 4)),
    "drill": drill,
    "facts": facts,
}


class Batches:
    """An endless stream of (ids, targets, weights), each batch of one canvas length and about ``tokens`` tokens.

    ``mix`` holds the share of each source among the problems; its entry ``loose`` is the share of
    problems put into a somewhat longer canvas than they need, ``wide`` into a much longer one.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int, seed: int, mix: dict[str, float]) -> None:
        self.tokenizer, self.ids, self.tokens = tokenizer, Ids.of(tokenizer), tokens
        self.rng, self.noise = random.Random(seed), np.random.default_rng(seed)
        self.mix = dict(mix)
        self.bare = encode(tokenizer, self.ids, "Write")
        special = set(vars(self.ids).values())
        pieces = sorted(tokenizer.get_vocab().items())
        known = string.digits + string.ascii_lowercase
        self.words = [i for piece, i in pieces if i not in special and (len(piece) > 1 or piece in known)]
        self.waiting: dict[int, list[tuple[list[int], list[int]]]] = {length: [] for length in LENGTHS}

    def _problem(self) -> tuple[list[int], list[int]]:
        """Prompt and answer of one problem of the mix, as token ids."""
        names = [name for name in self.mix if name in SOURCES or name == "echo"]
        while True:
            source = self.rng.choices(names, [self.mix[name] for name in names])[0]
            if source == "echo":
                return self._echo()
            problem = SOURCES[source](self.rng)
            if source == "facts" or problem.split == "train":
                return encode(self.tokenizer, self.ids, problem.prompt), self.tokenizer.encode(problem.answer).ids

    def _echo(self) -> tuple[list[int], list[int]]:
        """Any pieces in any order, to be repeated: every masked token can be copied, so copying is learnt first."""
        pieces = self.rng.choices(self.words, k=self.rng.randint(6, 20))
        intro = self.tokenizer.encode(self.rng.choice(("Repeat:", "Copy the list:", "Write this again:"))).ids
        return [self.ids.bos, self.ids.user, *intro, *pieces, self.ids.assistant], pieces

    def _length(self, needed: int) -> int:
        draw = self.rng.random()
        if draw < self.mix.get("wide", 0.0):
            needed += self.rng.choice((64, 128, 256, 256, 256, 512, 1024)) - 24
        elif draw < self.mix.get("wide", 0.0) + self.mix.get("loose", 0.0):
            needed += self.rng.randint(0, 32)
        return next((length for length in LENGTHS if length >= needed), LENGTHS[-1])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        while True:
            prompt, answer = self._problem()
            length = self._length(len(prompt) + len(answer) + 2)
            queue = self.waiting[length]
            queue.append((prompt, answer))
            if len(queue) * length >= self.tokens:
                yield self._build(queue, length)
                queue.clear()

    def _build(self, rows: list[tuple[list[int], list[int]]], length: int) -> tuple[torch.Tensor, ...]:
        targets = np.full((len(rows), length), self.ids.eos, dtype=np.int64)
        weights = np.full((len(rows), length), EOS_WEIGHT, dtype=np.float32)
        masked = np.zeros((len(rows), length), dtype=bool)
        for i, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            targets[i, :end] = prompt + answer
            weights[i, : end + 2] = 1.0
            if prompt == self.bare:
                masked[i, len(prompt) : end] = self._results(answer)
            else:
                masked[i, len(prompt) :] = self._pattern(length - len(prompt), len(answer))
        if self.rng.random() < 0.1:
            longest = max(len(prompt) for prompt, _ in rows)
            cut = self.rng.randint(min(longest + 8, length), length)
            targets, weights, masked = targets[:, :cut], weights[:, :cut], masked[:, :cut]
        ids = np.where(masked, self.ids.mask, targets)
        weights = np.where(masked, weights, 0.0).astype(np.float32)
        return torch.from_numpy(ids), torch.from_numpy(targets.copy()), torch.from_numpy(weights)

    def _results(self, answer: list[int]) -> np.ndarray:
        """The results of bare equations, and here and there something else."""
        tokens = np.array(answer)
        equals, ends = (np.cumsum(tokens == self.tokenizer.token_to_id(token)) for token in ("=", "Ċ"))
        result = (equals > ends) & (tokens != self.tokenizer.token_to_id("="))
        return self.noise.random(len(answer)) < np.where(result, 0.85, 0.03)

    def _pattern(self, length: int, answer: int) -> np.ndarray:
        """Which response positions are masked: uniformly at random, or as in the middle of block-wise decoding."""
        noise = self.noise.random(length)
        level = self.noise.random()
        if self.rng.random() < 0.5:
            return noise < max(level, 1.0 / (answer + 1))
        start = BLOCK * self.rng.randint(0, answer // BLOCK)
        if self.rng.random() < 0.3:
            start = self.rng.randint(0, answer)
        masked = np.ones(length, dtype=bool)
        masked[:start] = False
        block = masked[start : start + BLOCK]
        ramp = np.linspace(0.6, 1.4, len(block)) if self.rng.random() < 0.5 else 1.0
        masked[start : start + BLOCK] = noise[start : start + BLOCK] < level * ramp
        return masked
