"""Time llama.cpp's diffusion example and unmask in turn: one forward pass, and whole answers.

    python -m benchmarks.llamacpp.build FOLDER                                  # once
    python -m benchmarks.llamacpp.run passes FOLDER --output runs/llamacpp.jsonl
    python -m benchmarks.llamacpp.run answers FOLDER --output runs/llamacpp.jsonl
    python -m benchmarks.llamacpp.run table --output runs/llamacpp.jsonl

Times are CPU time, summed over the threads: beside other work it says more than the clock.

``passes``: a LLaDA of 220 M random weights, converted by llama.cpp's own converter; all compute the same canvas. A
round runs each program in turn; llama.cpp's figure is what four forward passes more take longer. It computes the head
at every position, unmask at the 32 of a block: 3 % of the products of this shape. ``ONEDNN_MAX_CPU_ISA`` says which
instructions unmask may use; a line holds it.

``answers``: the bundled model on problems whose prompts both tokenize alike. llama.cpp fills the canvas, one token a
forward pass and four; it has no early stop, cache or parallel policy. Its times include loading the file, 20 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import unmask
from unmask.api import BUNDLED
from unmask.core import heap, threads
from unmask.measure.machine import device_name
from unmask.measure.problems import source as problems
from unmask.models.packing import Scheme
from unmask.models.random import SHAPES, random_denoiser, shape
from unmask.models.transformer import Transformer

from ..forward import Forward, Size
from .build import build, source
from .convert import CHARACTERS

SHAPE = "llada-220m"
FORMATS = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
KINDS = ("none", "int8", "int4")
FAMILY, BLOCK = "word_problem", 32
_TOTAL = re.compile(r"total time: ([\d.]+)ms, time per step: ([\d.]+)ms, sampling time per step: ([\d.]+)ms")


class Example:
    """llama.cpp's diffusion example on one file."""

    def __init__(self, program: Path, file: Path, count: int, canvas: int) -> None:
        self.program, self.file, self.count, self.canvas = program, file, count, canvas

    def __call__(self, prompt: str, steps: int, block: int = BLOCK) -> tuple[float, str]:
        """Milliseconds of CPU time, loading included, and the text."""
        size, before = str(self.canvas), _children()
        done = subprocess.run(
            [str(self.program), "-m", str(self.file), "-p", prompt, "-ub", size, "-b", size, "-c", size, "--temp", "0",
             "--diffusion-steps", str(steps), "--diffusion-block-length", str(block), "-t", str(self.count),
             "-tb", str(self.count)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        log = done.stderr + done.stdout
        total = _TOTAL.search(log)
        if total is None:
            raise SystemExit(f"{self.program.name} failed on {self.file.name}: {log[-400:]}")
        return 1e3 * (_children() - before), log[total.end() :].partition(" I ")[2].strip()

    def step(self, prompt: str) -> float:
        """Milliseconds of CPU time of one forward pass: what more of them take longer."""
        few, more = (self(prompt, steps, self.canvas)[0] for steps in (2, 6))
        return (more - few) / 4


def _children() -> float:
    """Seconds of CPU time of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quantised(folder: Path, plain: Path) -> dict[str, Path]:
    """A file of each format, made by llama.cpp from one in bfloat16."""
    made = {"BF16": plain}
    for kind in FORMATS[1:]:
        made[kind] = plain.with_name(f"{plain.stem.removesuffix('-bf16')}-{kind.lower()}.gguf")
        if not made[kind].exists():
            program = folder / "build" / "bin" / "llama-quantize"
            subprocess.run([str(program), str(plain), str(made[kind]), kind, "1"], check=True, capture_output=True)
    return made


def converted(folder: Path, checkpoint: Path) -> Path:
    """A checkpoint as a file of llama.cpp, in bfloat16; made by a process of its own."""
    file = folder / f"{checkpoint.name}-bf16.gguf"
    if not file.exists():
        command = (sys.executable, "-m", "benchmarks.llamacpp.convert", source(folder), checkpoint, file)
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return file


def drawn(folder: Path) -> Path:
    """A checkpoint of random weights, the same that unmask draws."""
    made = folder / SHAPE
    if not (made / "model.safetensors").exists():
        made.mkdir(exist_ok=True)
        found = shape(SHAPE)
        more = {"torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "vocab_size": SHAPES[SHAPE]["embedding_size"]}
        config = SHAPES[SHAPE] | more
        (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
        network: Transformer = random_denoiser(found, torch.device("cpu"), torch.bfloat16).network
        parameters, tensors = dict(network.named_parameters()), dict[str, torch.Tensor]()
        for name, parts in network.parts().items():
            rows = torch.split(parameters[name], [s[0] for s in parts.values()])
            for part, piece in zip(parts, rows, strict=True):
                tensors[found.names[part]] = piece.clone()
        save_file(tensors, made / "model.safetensors")
    return made


def passes(
    folder: Path, canvas: int, rounds: int, count: int, formats: list[str], kinds: list[str]
) -> Iterator[dict[str, Any]]:
    """One forward pass."""
    files, programs = quantised(folder, converted(folder, drawn(folder))), build(folder)
    examples = {
        kind: Example(programs / "llama-diffusion-cli", file, count, canvas)
        for kind, file in files.items()
        if kind in formats
    }
    where, found = torch.device("cpu"), shape(SHAPE)
    calls: dict[str, Callable[[], object]] = {}
    for kind in kinds:
        model = random_denoiser(found, where, torch.bfloat16, Scheme.parse(kind))
        calls["bfloat16" if kind == "none" else kind] = Forward(model, Size(canvas, 1, canvas))
    prompt = CHARACTERS[0] * 8
    for _ in range(rounds):
        for kind, example in examples.items():
            yield {"what": "pass", "program": "llama.cpp", "kind": kind, "ms": example.step(prompt), "size": canvas}
        for kind, call in calls.items():
            with torch.inference_mode():
                call()
                begun = time.process_time()
                for _ in range(4):
                    call()
            took = 1e3 * (time.process_time() - begun) / 4
            yield {"what": "pass", "program": "unmask", "kind": kind, "ms": took, "size": canvas}


def answers(
    folder: Path, canvas: int, rounds: int, count: int, formats: list[str], kinds: list[str]
) -> Iterator[dict[str, Any]]:
    """Whole answers."""
    files, programs = quantised(folder, converted(folder, BUNDLED)), build(folder)
    models = {kind: unmask.load(dtype="bfloat16", quantize=kind) for kind in kinds}
    for model in models.values():
        model.generate("warm up", 32)
    for item in problems(FAMILY, rounds).items:
        prompt = item.prompt
        length = canvas - len(models[kinds[0]].text.encode(prompt))  # type: ignore[union-attr]
        for kind in formats:
            example = Example(programs / "llama-diffusion-cli", files[kind], count, canvas)
            for steps in (canvas, canvas // 4 // 9 * 9):
                took, text = example(prompt, steps)
                yield _answer("llama.cpp", f"{kind}, {steps} steps", took, item.check(text), steps)
        settings = {"vanilla, all of the canvas": ("vanilla", "none", True), "vanilla": ("vanilla", "none", False),
                    "recommended": (None, None, False)}  # fmt: skip
        for kind, model in models.items():
            for name, (policy, cache, whole) in settings.items():
                begun = time.process_time()
                (result,) = model.generate(prompt, length, policy, cache, ignore_eos=whole)
                took = 1e3 * (time.process_time() - begun)
                dtype = "bfloat16" if kind == "none" else kind
                yield _answer("unmask", f"{dtype}, {name}", took, item.check(result.text), result.stats.nfe)


def _answer(program: str, kind: str, took: float, right: bool, nfe: int) -> dict[str, Any]:
    return {"what": "answer", "program": program, "kind": kind, "ms": took, "right": bool(right), "nfe": nfe}


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: medians over the rounds, and how many times as fast as llama.cpp's fastest."""
    rows = [
        "| what | program | kind | rounds | ms, median (quartiles) | x llama.cpp's best | right | NFE |",
        "|---" * 8 + "|",
    ]
    for what in ("pass", "answer"):
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for line in lines:
            if line["what"] == what:
                groups.setdefault((line["program"], line["kind"]), []).append(line)
        middle = {key: statistics.median(x["ms"] for x in held) for key, held in groups.items()}
        best = min((ms for (program, _), ms in middle.items() if program == "llama.cpp"), default=float("nan"))
        for (program, kind), held in groups.items():
            times = sorted(x["ms"] for x in held)
            low, high = times[len(times) // 4], times[-1 - len(times) // 4]
            right = f"{sum(x['right'] for x in held)} of {len(held)}" if what == "answer" else ""
            nfe = f"{statistics.mean(x['nfe'] for x in held):.1f}" if what == "answer" else ""
            ms = middle[program, kind]
            cells = (what, program, kind, str(len(held)), f"{ms:.1f} ({low:.1f} - {high:.1f})", f"{best / ms:.2f}")
            rows.append(f"| {' | '.join((*cells, right, nfe))} |")
    return "\n".join(rows)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("passes", "answers", "table"))
    parser.add_argument("folder", type=Path, nargs="?", help="where build.py has built")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; more are added to what is there")
    parser.add_argument("--canvas", type=int, default=288)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS[:2]), choices=KINDS, help="of unmask's weights")
    given = parser.parse_args()
    if given.what == "table":
        print(table([json.loads(line) for line in given.output.read_text(encoding="utf-8").splitlines()]))
        return
    if given.folder is None:
        parser.error("the folder where llama.cpp is built is missing")
    heap.keep_freed()
    threads.fix(given.threads)
    run = passes if given.what == "passes" else answers
    machine = {"machine": device_name(torch.device("cpu")), "threads": given.threads, "torch": torch.__version__}
    machine |= {"isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL")}
    with given.output.open("a", encoding="utf-8") as file:
        for line in run(given.folder.resolve(), given.canvas, given.rounds, given.threads, given.formats, given.kinds):
            file.write(json.dumps(line | machine) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
