"""Drafters side by side: each prompt with each of them, in a random order; one line of results for each.

python recipes/speculate/measure.py runs/a.jsonl --drafter ngram --drafter "specdiff(gamma=16,context=64)"
python recipes/speculate/measure.py runs/a.jsonl --table

``--check`` compares with ``transformers``' own ``generate``, token for token, alone and in batches of ``--batch-size``,
and times nothing. ``--peer`` measures its ``generate`` alone, with prompt look-up, or assisted by half of its own
layers. What the file holds is not run again: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import unmask
from unmask.measure.problems import source
from unmask.registry import drafter

FAMILIES = ("word_problem", "record", "sudoku", "waiting_line", "multi")
ALONE = "target alone"
PEERS = {
    "transformers": {},
    "transformers, prompt look-up": {"prompt_lookup_num_tokens": 10},
    "transformers, assisted": {"assistant_early_exit": 0},
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="JSONL file; lines are added")
    parser.add_argument("--target", help="folder of a causal model; none: the bundled one")
    parser.add_argument("--drafter", action="append", default=[], help="spec of a drafter; can be several")
    parser.add_argument(
        "--task", action="append", help="source of prompts as for unmask bench; none: the five families"
    )
    parser.add_argument("-n", type=int, default=4, help="prompts of each source")
    parser.add_argument("--gen-length", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--check", action="store_true", help="compare with transformers, time nothing")
    parser.add_argument("--peer", action="append", default=[], choices=PEERS, help="measured as well; can be several")
    parser.add_argument("--table", action="store_true", help="print what the file holds, run nothing")
    return parser.parse_args()


def prompts(lm: unmask.CausalLM, tasks: list[str], n: int) -> list[list[int]]:
    """Ids of ``n`` prompts of each source, the sources in turn."""
    assert lm.text is not None
    found = [source(task, n, answers=False).items for task in tasks]
    return [lm.text.encode(item.prompt) for items in zip(*found, strict=True) for item in items]


def theirs(folder: Path, dtype: str) -> object:
    """The model of ``transformers``."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def continued(model: object, ids: list[int], options: argparse.Namespace, **more: object) -> list[int]:
    """What ``transformers`` generates greedily."""
    given = torch.tensor([ids])
    found = model.generate(given, max_new_tokens=options.gen_length, do_sample=False, **more)  # type: ignore[attr-defined]
    return found[0, len(ids) :].tolist()


def check(lm: unmask.CausalLM, texts: list[list[int]], options: argparse.Namespace) -> None:
    """Count the texts that are not those of ``transformers``."""
    model = theirs(lm.target.model.folder, options.dtype)
    expected = [continued(model, ids, options) for ids in texts]
    for spec in (None, *options.drafter):
        for size in sorted({1, options.batch_size}):
            found = lm.generate(texts, options.gen_length, spec, batch_size=size)
            same = sum(r.tokens == own for r, own in zip(found, expected, strict=True))
            rate = sum(r.stats.tokens for r in found) / sum(r.stats.rounds for r in found)
            what = f"{spec or ALONE}, batch {size}"
            print(f"{what}: {same} of {len(texts)} texts equal, {rate:.2f} tokens a round", flush=True)


def measure(lm: unmask.CausalLM, texts: list[list[int]], options: argparse.Namespace) -> None:
    """Time each setting with each prompt, settings in a random order."""
    model = theirs(lm.target.model.folder, options.dtype) if options.peer else None
    settings = [ALONE, *(str(drafter(spec)) for spec in options.drafter), *options.peer]
    common = {"target": options.target, "dtype": options.dtype, "gen_length": options.gen_length,
              "batch_size": options.batch_size, "temperature": options.temperature}  # fmt: skip
    held = Path(options.output).read_text("utf-8").splitlines() if Path(options.output).exists() else []
    lines = [one for one in map(json.loads, held) if common.items() <= one.items()]
    done = {(one["setting"], one["part"]) for one in lines}
    draw = random.Random(0)
    parts = [texts[i : i + options.batch_size] for i in range(0, len(texts), options.batch_size)]
    with Path(options.output).open("a", encoding="utf-8") as file:
        for setting in settings:  # weights, tables and kernels come before the clock
            if setting not in PEERS:
                lm.generate(texts[:1], 8, None if setting == ALONE else setting)
        for index, part in enumerate(parts):
            for setting in draw.sample(settings, len(settings)):
                if (setting, index) in done:
                    continue
                began, cpu = time.perf_counter(), time.process_time()
                if setting in PEERS:
                    more = dict(PEERS[setting])
                    if "assistant_early_exit" in more:
                        more["assistant_early_exit"] = max(1, model.config.num_hidden_layers // 2)
                    made = [continued(model, ids, options, **more) for ids in part]
                    line = {"tokens": sum(map(len, made)), "rounds": 0, "drafted": 0, "accepted": 0, "passes": 0}
                else:
                    how = None if setting == ALONE else setting
                    sampling = {"temperature": options.temperature, "seed": index * options.batch_size}
                    found = lm.generate(part, options.gen_length, how, batch_size=options.batch_size, **sampling)
                    made = [r.tokens for r in found]
                    line = {
                        "tokens": sum(r.stats.tokens for r in found), "rounds": sum(r.stats.rounds for r in found),
                        "drafted": sum(r.stats.drafted for r in found),
                        "accepted": sum(r.stats.accepted for r in found),
                        "passes": sum(r.stats.draft_passes for r in found),
                        "drafting": sum(r.stats.draft_seconds for r in found),
                    }  # fmt: skip
                seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
                line |= {"setting": setting, "part": index, "seconds": seconds, "cpu": cpu, "made": made, **common}
                file.write(json.dumps(line) + "\n")
                file.flush()


def table(path: str) -> None:
    """A table of what a file holds: tokens per second of processor time, and the median over prompts of that beside the
    target's: with one thread it counts no time that other processes take.
    """
    groups = defaultdict(dict)
    for line in map(json.loads, Path(path).read_text(encoding="utf-8").splitlines()):
        kind = (line["target"], line["dtype"], line["batch_size"], line["temperature"])
        groups[kind].setdefault(line["setting"], {})[line["part"]] = line
    for (target, dtype, size, heat), settings in groups.items():
        count = len(settings[ALONE])
        print(f"\ntarget {target or 'bundled'}, {dtype}, batch {size}, temperature {heat:g}: {count} runs\n")
        heads = "equal texts", "tokens a round", "accepted, %", "drafter passes a round", "tokens per CPU second"
        print(f"| drafter | {' | '.join(heads)} | speed |\n|---|---|---|---|---|---|---|")
        for name, lines in settings.items():
            total = lambda key, lines=lines: sum(one.get(key, 0) for one in lines.values())  # noqa: E731
            both = [(one, settings[ALONE][part]) for part, one in lines.items() if part in settings[ALONE]]
            same = sum(a["made"] == b["made"] for a, b in both)
            ratio = statistics.median((a["tokens"] / a["cpu"]) / (b["tokens"] / b["cpu"]) for a, b in both)
            rounds, drafted = total("rounds"), total("drafted")
            cells = [
                f"`{name}`", f"{same} of {len(both)}", f"{total('tokens') / rounds:.2f}" if rounds else "",
                f"{100 * total('accepted') / drafted:.0f}" if drafted else "",
                f"{total('passes') / rounds:.2f}" if rounds else "",
                f"{total('tokens') / total('cpu'):.1f}", f"{ratio:.2f}x",
            ]  # fmt: skip
            print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Run what the command line asks for."""
    options = arguments()
    if options.table:
        table(options.output)
        return
    torch.set_num_threads(1)
    lm = unmask.load_causal(options.target, dtype=options.dtype)
    texts = prompts(lm, options.task or list(FAMILIES), options.n)
    (check if options.check else measure)(lm, texts, options)


if __name__ == "__main__":
    main()
