"""DiffusionGemma's random checkpoint, its golden cases with the draws that they record, and requests to decode."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unmask
from unmask import registry
from unmask.core.canvas import Canvas
from unmask.core.protocols import Prediction
from unmask.engine.loop import Step
from unmask.engine.outcome import Outcome
from unmask.engine.request import Request, SamplingParams
from unmask.engine.scheduler import Engine
from unmask.models.diffusion_gemma_denoiser import GemmaDenoiser
from unmask.policies.renoise import Renoise, RenoiseState, within_bound

ROOT = Path(os.environ.get("UNMASK_GOLDEN_BLOCKS") or Path(__file__).parent / "golden" / "blocks")
METHODS = ("gemma_entropy_bound", "gemma_entropy_bound_sampled")
CHECKPOINT = Path(__file__).parent / "golden" / "blocks" / "checkpoints" / "diffusion-gemma-rand"


@cache
def model(folder: Path = CHECKPOINT) -> unmask.Model:
    """The checkpoint in float32."""
    return unmask.load(folder, device="cpu", dtype="float32")


def denoiser(folder: Path = CHECKPOINT, **spec: Any) -> GemmaDenoiser:
    """Its network with other ids or another canvas."""
    own = model(folder).denoiser
    assert isinstance(own, GemmaDenoiser)
    return GemmaDenoiser(own.network, replace(own.spec, **spec))


def read(name: str) -> Iterator[tuple[Path, Any]]:
    """(folder, entry) of all files of the golden set that match a name."""
    for file in sorted(ROOT.glob(f"*/{name}")):
        if file.parent.name != "checkpoints":
            yield from ((file.parent, entry) for entry in json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Case:
    """One line of a golden file."""

    data: dict[str, Any]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The rows of the trace that denoise."""
        return [row for row in self.data["trace"] if row["kind"] == "denoise"]

    @cached_property
    def noise(self) -> list[list[int]]:
        """The canvas drawn before the first step and after each: at the end of one the next begins from its own."""
        found = [row["noise"] for row in self.steps]
        for before, row in enumerate(self.steps[1:]):
            found[before] = row.get("canvas", found[before])
        return [self.steps[0]["canvas"], *found]

    @cached_property
    def response(self) -> list[int]:
        """The tokens of the response up to its end of text."""
        tokens = self.data["tokens"][len(self.data["prompt_ids"]) :][: self.data["params"]["max_new_tokens"]]
        return cut(tokens, self.eos)

    @property
    def eos(self) -> int:
        eos = self.data["params"].get("eos_token_id", 1)
        assert isinstance(eos, int)
        return eos

    def __hash__(self) -> int:
        return hash(self.data["name"])


def cut(tokens: Sequence[int], eos: int) -> list[int]:
    """Up to the first end of text."""
    return list(tokens[: tokens.index(eos) + 1] if eos in tokens else tokens)


CASES = [Case(entry) for folder, entry in read("*.json") if entry.get("method") in METHODS]


@dataclass(frozen=True)
class Fed(Renoise):
    """The policy with a case's draws in place of its own; ``told`` receives the differences of each step."""

    name = "fed"
    case: Case | None = None
    told: Any = None

    def noise(self, place: Tensor, state: RenoiseState, vocab: int) -> Tensor:
        assert self.case is not None
        return torch.tensor([self.case.noise[int(state.drawn[0])]])

    def decide(self, canvas: Canvas, prediction: Prediction, state: RenoiseState) -> tuple[Any, RenoiseState]:
        assert self.case is not None and prediction.entropy is not None and prediction.drawn is not None
        row, open_ = self.case.steps[int(state.drawn[0]) - 1], prediction.confidence > -torch.inf
        if self.case.data["method"] == METHODS[1]:
            drawn = prediction.drawn.clone()
            drawn[open_] = torch.tensor(row["sampled"])
            prediction = replace(prediction, drawn=drawn)
        accepted = within_bound(prediction.entropy, open_, self.entropy_bound)[open_].nonzero()[:, 0].tolist()
        ours = {"argmax": prediction.token[open_].tolist(), "accepted": accepted, "step": int(state.left[0])}
        self.told.extend((name, row["step"], value, row[name]) for name, value in ours.items() if value != row[name])
        return super().decide(canvas, prediction, state)


def request(
    id: int, prompt: Sequence[int], length: int, policy: Any = "renoise", cache: Any = "none", **params: Any
) -> Request:
    """A request; ``fixed`` and the sampling parameters by name."""
    fixed = params.pop("fixed", {})
    own = SamplingParams(**{"seed": 0, **params})
    return Request(id, prompt, length, registry.policy(policy), registry.cache(cache), own, fixed)


def decode(model: GemmaDenoiser, requests: Sequence[Request], batch_size: int = 8) -> dict[int, Outcome]:
    """The outcomes of requests, none of which may fail."""
    found = {}
    for event in events(model, requests, batch_size):
        if isinstance(event, Outcome):
            assert event.error is None, event.error
            found[event.request.id] = event
    return found


def events(model: GemmaDenoiser, requests: Sequence[Request], batch_size: int = 8) -> Iterator[Step | Outcome]:
    """Everything that an engine tells."""
    engine = Engine(model, batch_size=batch_size)
    for one in requests:
        engine.add(one)
    while engine.busy:
        yield from engine.step()


def with_text(folder: Path) -> Path:
    """The checkpoint with a tokenizer of one id per character and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    made = shutil.copytree(CHECKPOINT, folder)
    names = ["<pad>", "<eos>", "<bos>", *map(chr, range(3, 127)), "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.save(str(made / "tokenizer.json"))
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %};"
    config = {"eos_token": "<eos>", "bos_token": "<bos>", "chat_template": template}
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return made
