"""Turn the records of runs into a page of Markdown and pictures; every figure on it is one of a record.

python benchmarks/gpu/page.py RECORDS [RECORDS ...] --out docs/results/gpu.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from book import Record, latest

NAMES = {"llada-8b": "LLaDA-8B", "dream-7b": "Dream-7B"}
HOWS = ("eager", "graphs", "compiled", "compiled graphs")
PUBLISHED, AUTOREGRESSIVE = "vanilla, as published", "autoregressive"
TUNED = (
    "slowfast", "slowfast + dllm", "lookahead slowfast", "lookahead slowfast + dllm", "threshold", "suffix threshold"
)  # fmt: skip
EXPECTED = {
    "a pass with 32 positions computed of 1024, batch 1: its time over the least that is possible, at most": 1.3,
    "a pass of all 1024 positions: share of the operations per second of a large matrix product, at least": 0.7,
    "slowfast + dllm over vanilla as published, gen_length 1024, batch 1, at least": 20.0,
}


class Records:
    """What the folders hold of one device."""

    def __init__(self, folders: Sequence[Path], device: str | None = None) -> None:
        self.folders = list(folders)
        every = [r for folder in folders for r in latest([folder], "machine") if "bandwidth" in r]
        devices = list(dict.fromkeys(r["device"] for r in every))
        if not devices:
            raise SystemExit(f"no record of a machine in {', '.join(map(str, folders))}")
        self.device = device or devices[-1]
        mine = [r for r in every if r["device"] == self.device]
        self.machine, self.dates = mine[0], sorted({r["date"] for r in mine})

    def of(self, part: str, **key: Any) -> list[Record]:
        """Records of a part whose keys have these values."""
        mine = (r for r in latest(self.folders, part) if r["device"] == self.device)
        return [r for r in mine if all(r["key"].get(name) == value for name, value in key.items())]

    def one(self, part: str, **key: Any) -> Record | None:
        """The one that was measured; None: there is none."""
        found = [r for r in self.of(part, **key) if not {"failed", "skipped"} & r.keys()]
        return found[0] if found else None


def page(records: Records, pictures: Sequence[str] = ()) -> str:
    """The whole page."""
    parts = [_head(records), _expected(records)]
    parts += [_passes(records, model) for model in NAMES] + [_quantised(records)]
    parts += [_pieces(records, model) for model in NAMES]
    parts += [_replays(records, length) for length in _values(records.of("replay"), "gen_length")]
    parts += [_spelled(records), _host(records), _answers(records), _served(records)]
    parts += [_tests(records), _left_out(records)]
    parts.insert(2, "\n\n".join(f"![{Path(p).stem}]({p})" for p in pictures))
    return "\n\n".join(filter(None, parts)) + "\n"


def _head(records: Records) -> str:
    m = records.machine
    versions = ", ".join(f"{name} {m[name]}" for name in ("torch", "cuda", "triton", "transformers") if name in m)
    return (
        f"# On a GPU: {records.device}\n\n{_answer(records)}"
        f"Measured on {' and '.join(records.dates)} with `benchmarks/gpu/run.sh` on one {records.device} ({versions}). "
        "Weights are random, in bfloat16, at the published shapes: times are those of the real models, texts are not. "
        "[How it is measured](../../benchmarks/gpu/README.md).\n\n"
        f"Two ceilings, measured in the first run: copying memory {m['bandwidth'] / 1e12:.2f} TB/s (read and written), "
        f"a matrix product of size {m['product_size']} {m['product'] / 1e12:.0f} TFLOP/s."
    )


def _answer(records: Records) -> str:
    """Two sentences: the speeds by batch size, as far as they were measured, and where accuracy stands."""
    batches = _values(records.of("replay", gen_length=1024), "batch")
    speeds = "; ".join(filter(None, (_compared(records, batch) for batch in batches)))
    first = f"At the shape of LLaDA-8B and gen_length 1024, {speeds}. " if speeds else ""
    return (
        f"{first}Accuracy is not measured here, and the number of forward passes is that of the bundled model: "
        "[headline.md](headline.md) and [policies.md](policies.md) have both.\n\n"
    )


def _compared(records: Records, batch: int) -> str:
    """The fastest decoding by a tuned policy, vanilla and an autoregressive model; '' without all three."""
    mine = [r for r in records.of("replay", gen_length=1024, batch=batch, how="graphs") if "seconds" in r]
    by = {r["key"]["setting"]: r for r in mine}
    slow, causal, tuned = by.get(PUBLISHED), by.get(AUTOREGRESSIVE), [by[name] for name in TUNED if name in by]
    if slow is None or causal is None or not tuned:
        return ""
    fast = max(tuned, key=lambda r: (bool(r.get("whole")), r["tokens_in_all"] / r["seconds"]))
    rate = f"{fast['tokens_in_all'] / fast['seconds']:.0f} tokens/s"
    if not fast.get("whole"):
        rate = f"less than {rate} (cut off after {fast['steps']} of {fast['steps_in_all']} passes)"
    return (
        f"batch {batch}, `{fast['key']['setting']}` generates {rate}, vanilla as published {_rate(slow) or 0:.1f}, "
        f"an autoregressive model of the same shape {_rate(causal) or 0:.0f}"
    )


def _expected(records: Records) -> str:
    """What was expected beforehand, beside what was measured; the best of the ways to run."""
    rows = []
    labels = list(EXPECTED)
    few = _best(records, 1024, 1, 32)
    if few:
        rows.append([labels[0], f"{EXPECTED[labels[0]]}", f"{few['seconds'] / few['least']:.2f} ({few['key']['how']})"])
    full = _best(records, 1024, 1, 1024)
    if full:
        share = full["operations"] / full["seconds"] / records.machine["product"]
        rows.append([labels[1], f"{EXPECTED[labels[1]]}", f"{share:.2f} ({full['key']['how']})"])
    fast = records.one("replay", setting="slowfast + dllm", gen_length=1024, batch=1, how="graphs")
    slow = records.one("replay", setting=PUBLISHED, gen_length=1024, batch=1)
    if fast and slow and fast.get("whole"):
        times = (_rate(fast) or 0) / (_rate(slow) or float("inf"))
        rows.append([labels[2], f"{EXPECTED[labels[2]]:.0f} x", f"{times:.1f} x{_cut(slow)}"])
    return "## What was expected\n\n" + table(["what", "expected", "measured"], rows) if rows else ""


def _best(records: Records, length: int, rows: int, computed: int) -> Record | None:
    size = (length, rows, computed)
    return min((r for r in _dense(records, "llada-8b") if _size(r) == size), key=lambda r: r["seconds"], default=None)


def _dense(records: Records, model: str) -> list[Record]:
    """Forward passes with weights in bfloat16, but for those beside quantised ones."""
    return [r for r in records.of("passes", model=model) if "seconds" in r and "weights" not in r["key"]]


def _passes(records: Records, model: str) -> str:
    mine = _dense(records, model)
    if not mine:
        return ""
    sizes = sorted({(r["key"]["length"], r["key"]["rows"], r["key"]["computed"]) for r in mine})
    rows = []
    for length, batch, computed in sizes:
        same = {r["key"]["how"]: r for r in mine if _size(r) == (length, batch, computed)}
        best = min(same.values(), key=lambda r: r["seconds"])
        rows.append([
            str(length), str(batch), str(computed), *(_ms(same.get(how), "seconds") for how in HOWS),
            _ms(best, "network"), _ms(best, "least"), f"{100 * best['share']:.0f} %", f"{best['peak'] / 1e9:.1f}",
        ])  # fmt: skip
    heads = ["canvas", "batch", "computed", *HOWS, "network alone", "least", "share", "GB"]
    return (
        f"## Forward passes at the shape of {NAMES[model]}\n\nMilliseconds, medians by CUDA events. `computed` "
        "positions of each row go through the layers, keys and values of the others are stored, up to 32 get logits. "
        "`least` is what the bytes or the operations take at the ceilings; `share` is `least` divided by the fastest "
        "time of the row; `network alone` is the time of the layers and the head, without planning and reading; `GB` "
        "is the most memory in use, weights included. Empty: not measured.\n\n" + table(heads, rows)
    )


def _quantised(records: Records) -> str:
    """Weights in few bits beside those in bfloat16, measured in the same run."""
    mine = [r for r in records.of("passes", model="llada-8b") if "seconds" in r and "weights" in r["key"]]
    kinds, rows = _values(mine, "weights"), []
    for size in sorted({_size(r) for r in mine}):
        for how in HOWS:
            by = {r["key"]["weights"]: r for r in mine if _size(r) == size and r["key"]["how"] == how}
            if by:
                cells = [cell for kind in kinds for cell in (_ms(by.get(kind), "seconds"), _gb(by.get(kind)))]
                rows.append([*map(str, size[1:]), how, *cells])
    names = ["bfloat16" if kind == "none" else kind for kind in kinds]
    heads = ["batch", "computed", "how", *(f"{name}, {unit}" for name in names for unit in ("ms", "GB"))]
    return (
        "## Weights in 8 and 4 bits at the shape of LLaDA-8B\n\nMilliseconds of a forward pass and the most memory in "
        "use, canvas 1024, as above, one after the other on one machine.\n\n" + table(heads, rows)
        if rows
        else ""
    )


def _gb(record: Record | None) -> str:
    return "" if record is None else f"{record['peak'] / 1e9:.1f}"


def _size(record: Record) -> tuple[int, int, int]:
    key = record["key"]
    return key["length"], key["rows"], key["computed"]


def _pieces(records: Records, model: str) -> str:
    mine = [r for r in records.of("pieces", model=model) if "seconds" in r]
    if not mine:
        return ""
    counts = _values(mine, "positions")
    rows = []
    for piece in _values(mine, "piece"):
        some = {r["key"]["positions"]: r for r in mine if r["key"]["piece"] == piece}
        first = next(iter(some.values()))
        least = first["bytes"] / records.machine["bandwidth"]
        rows.append(
            [piece, *(_ms(some.get(count), "seconds") for count in counts), f"{1e3 * least:.2f}" if least else ""]
        )
    heads = ["piece", *(f"{count} positions" for count in counts), "reading alone"]
    length = mine[0]["key"]["length"]
    return (
        f"## Pieces of the layers at the shape of {NAMES[model]}\n\nMilliseconds of each piece alone, all layers in "
        f"one graph, batch 1, {length} stored positions. `reading alone` is what its weights, or keys and values, take "
        "at the bandwidth of a copy.\n\n" + table(heads, rows)
    )


def _replays(records: Records, length: int) -> str:
    mine = [r for r in records.of("replay", gen_length=length) if "seconds" in r]
    if not mine:
        return ""
    batches = _values(mine, "batch")
    rows = []
    for label in _values(mine, "setting"):
        for how in _values([r for r in mine if r["key"]["setting"] == label], "how"):
            some = {r["key"]["batch"]: r for r in mine if (r["key"]["setting"], r["key"]["how"]) == (label, how)}
            first = next(iter(some.values()))
            name = f"{label}, eager" if how == "eager" else label
            many = len(first["nfe"])
            front = [f"{sum(first['nfe']) / many:.1f}", f"{first['tokens_in_all'] / sum(first['nfe']):.2f}"]
            front += [f"{1e3 * first['seconds'] / first['steps']:.1f}", _outside(first)]
            speeds = [_speed(some.get(batch)) for batch in batches]
            rows.append([name, *front, *speeds, *(_times(mine, some.get(batch)) for batch in batches)])
    heads = [
        "decoder", "NFE", "TPF", "ms a pass", "outside the network",
        *(f"tokens/s, batch {b}" for b in batches),
        *(f"against published, {b}" for b in batches),
    ]  # fmt: skip
    prompt = [n for r in mine for n in r.get("prompt", [])]
    about = f"; prompts of {min(prompt)} to {max(prompt)} tokens" if prompt else ""
    odd = [r["key"] for r in mine if r.get("path") == "NOT as recorded" or r.get("unrecorded")]
    warn = f"\n\nOff the recorded path, not to be used: {odd}." if odd else ""
    return (
        f"## End to end, gen_length {length}\n\nDecodings of the bundled model replayed at the shape of LLaDA-8B: "
        "each forward pass commits what was recorded, all else is the real engine, policy, cache, network and head. "
        f"Tokens are those before the first end of text{about}. What stands before the rates is of the smallest batch; "
        "*outside the network* is time before the layers and behind the head. Rows with *n of N passes* were cut off: "
        "where every pass costs the same (vanilla without a cache) the rate follows from the passes measured, else "
        "none is given. Graphs were recorded while the same prompts were decoded before, but for rows cut off; `eager` "
        "has none. `autoregressive`: a causal model of the same shape, one graph a token, static keys and values."
        + warn
        + "\n\n"
        + table(heads, rows)
    )


def _spelled(records: Records) -> str:
    """What the decoders are called in an option."""
    specs = {
        r["key"]["setting"]: [f"`{r['policy']}`", f"`{r['cache']}`"] for r in records.of("replay") if "policy" in r
    }
    rows = [[label, *spec] for label, spec in specs.items()]
    return "## The decoders\n\n" + table(["decoder", "policy", "cache"], rows) if rows else ""


def _rate(record: Record) -> float | None:
    """Tokens per second; of a decoding that was cut off only where each pass costs the same."""
    if record.get("whole"):
        return float(record["tokens"] / record["seconds"])
    if str(record["key"]["setting"]).startswith("vanilla") and record.get("cache") == "none" and record["steps"]:
        return float(record["tokens_in_all"] / (record["seconds"] / record["steps"] * record["steps_in_all"]))
    return None


def _cut(record: Record) -> str:
    return "" if record.get("whole") else f" ({record['steps']} of {record['steps_in_all']} passes)"


def _speed(record: Record | None) -> str:
    if record is None:
        return ""
    rate = _rate(record)
    return f"{rate:.1f}{_cut(record)}" if rate is not None else f"cut off{_cut(record)}"


def _outside(record: Record) -> str:
    inside = record.get("network")
    return "" if inside is None else f"{100 * max(0.0, 1 - inside / record['seconds']):.0f} %"


def _times(mine: Iterable[Record], record: Record | None) -> str:
    if record is None:
        return ""
    key = record["key"]
    base = [r for r in mine if (r["key"]["setting"], r["key"]["batch"]) == (PUBLISHED, key["batch"])]
    rate, slow = _rate(record), _rate(base[0]) if base else None
    return f"{rate / slow:.1f} x" if rate and slow else ""


def _host(records: Records) -> str:
    rows = []
    for r in records.of("host"):
        if r.get("seconds_per_step") is None or not r.get("device_seconds_per_step"):
            continue
        key, wall, busy = r["key"], r["seconds_per_step"], r["device_seconds_per_step"]
        rows.append([
            key["setting"], str(key["batch"]), key["how"], f"{1e3 * wall:.2f}", f"{1e3 * busy:.2f}",
            f"{100 * max(0.0, 1 - busy / wall):.0f} %", f"{r['kernels_per_step']:.0f}", f"{r['launches_per_step']:.0f}",
            f"{r['waits_per_step']:.1f}", f"{r['copies_to_host_per_step']:.1f}",
        ])  # fmt: skip
    if not rows:
        return ""
    heads = [
        "decoder", "batch", "how", "ms a step", "device busy, ms", "device idle", "kernels",
        "launches", "waits", "copies to the host",
    ]  # fmt: skip
    return (
        "## Time outside the network\n\nOf steps in the middle of a decoding, gen_length 256: the wall time of a step, "
        "in how much of it the device has work, and what the host does. Wall times are of a run without the profiler."
        "\n\n" + table(heads, rows)
    )


def _answers(records: Records) -> str:
    mine = [r for r in records.of("answers") if "same_tokens" in r]
    if not mine:
        return ""
    rows = [
        [r["key"]["setting"], r["key"]["dtype"], f"{r['same_tokens']} / {r['n']}", f"{r['same_passes']} / {r['n']}",
         f"{r['right']} / {r['n']}", f"{r['right_on_cpu']} / {r['n']}"]
        for r in mine
    ]  # fmt: skip
    heads = ["decoder", "dtype", "same tokens", "same number of passes", "right", "right on the CPU"]
    return (
        "## The same answers as on the CPU\n\nProblems of the bundled tasks by the bundled model, beside the CPU in "
        "float32.\n\n" + table(heads, rows)
    )


def _served(records: Records) -> str:
    law, load = records.one("answers", what="law"), records.one("answers", what="load")
    said = []
    if law:
        key = law["key"]
        said.append(f"Of {key['requests']} requests of {key['kinds']} kinds, {key['concurrency']} at a time,")
        said.append(
            f"{law['as_alone']} were answered as alone, {law['left']} given up by the client, {law['wrong']} wrong."
        )
    if load:
        key, times = load["key"], len(load["served_tokens_per_second"])
        alone, served = (median(load[f"{name}_tokens_per_second"]) for name in ("alone", "served"))
        said.append(f"{key['requests']} requests, {key['concurrency']} at a time: {served:.0f} tokens/s served,")
        said.append(f"{alone:.0f} by the engine alone, in turns, medians of {times}: a ratio of {load['share']:.2f}.")
    return "## Served\n\n`unmask serve` with the bundled model in float32. " + " ".join(said) if said else ""


def _tests(records: Records) -> str:
    ran = [r for r in records.of("tests") if "outcome" in r]
    if not ran:
        return ""
    kinds = ("passed", "failed", "skipped")
    every = {kind: [r["key"]["test"] for r in ran if r["outcome"] == kind] for kind in kinds}
    names = sorted({r["key"]["test"].partition("[")[0] for r in ran})
    rows = [[n, *(str(sum(t.partition("[")[0] == n for t in every[k])) for k in kinds)] for n in names]
    counts = ", ".join(f"{len(some)} {kind}" for kind, some in every.items() if some)
    ended = records.of("tests", what="ended")
    end = "" if ended and ended[-1]["complete"] else " The rest did not run for want of time."
    listed = "\n\nFailed: " + ", ".join(f"`{name}`" for name in every["failed"]) if every["failed"] else ""
    return f"## Tests\n\n`tests/test_cuda.py`: {counts}.{end}\n\n" + table(["test", *kinds], rows) + listed


def _left_out(records: Records) -> str:
    lines = []
    for part in ("passes", "replay", "host", "answers"):
        for r in records.of(part):
            why = r.get("failed") or r.get("skipped")
            if why:
                what = ", ".join(f"{name} {value}" for name, value in r["key"].items())
                lines.append(f"- {part}: {what}: {str(why).splitlines()[0][:200]}")
    return "## Not measured\n\n" + "\n".join(lines) if lines else ""


def _values(records: Iterable[Record], name: str) -> list[Any]:
    return list(dict.fromkeys(r["key"][name] for r in records if name in r["key"]))


def _ms(record: Record | None, name: str) -> str:
    return "" if record is None else f"{1e3 * record[name]:.2f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(records: Records, folder: Path) -> list[str]:
    """The pictures whose records are there; their names."""
    import matplotlib as mpl

    mpl.use("Agg")
    made = []
    pictures: dict[str, Callable[[Records, Any], bool]] = {"gpu-passes.png": _draw_passes, "gpu-speed.png": _draw_speed}
    for name, paint in pictures.items():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        if paint(records, axes):
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / name, dpi=120)
            made.append(name)
        plt.close(figure)
    return made


def _draw_passes(records: Records, axes: Any) -> bool:
    mine = [r for r in _dense(records, "llada-8b") if r["key"]["rows"] == 1]
    if not mine:
        return False
    length = 1024 if any(r["key"]["length"] == 1024 for r in mine) else mine[0]["key"]["length"]
    mine = sorted((r for r in mine if r["key"]["length"] == length), key=lambda r: r["key"]["computed"])
    for how in HOWS:
        some = [r for r in mine if r["key"]["how"] == how]
        if some:
            axes.plot([r["key"]["computed"] for r in some], [1e3 * r["seconds"] for r in some], marker="o", label=how)
    least = {r["key"]["computed"]: 1e3 * r["least"] for r in mine}
    axes.plot(list(least), list(least.values()), color="black", linestyle="--", label="least")
    axes.set(xscale="log", yscale="log", xlabel="positions computed", ylabel="milliseconds")
    axes.set_title(f"a forward pass at the shape of LLaDA-8B, canvas {length}, batch 1, {records.device}")
    axes.legend()
    return True


def _draw_speed(records: Records, axes: Any) -> bool:
    mine = [r for r in records.of("replay") if "seconds" in r and r["key"]["how"] == "graphs" and _rate(r)]
    if not mine:
        return False
    length = max(r["key"]["gen_length"] for r in mine)
    batch = min(r["key"]["batch"] for r in mine if r["key"]["gen_length"] == length)
    some = [r for r in mine if (r["key"]["gen_length"], r["key"]["batch"]) == (length, batch)]
    some = sorted(some, key=lambda r: _rate(r) or 0)
    axes.barh([r["key"]["setting"] for r in some], [_rate(r) or 0 for r in some])
    axes.set(xscale="log", xlabel="tokens per second")
    axes.set_title(f"gen_length {length}, batch {batch}, shape of LLaDA-8B, {records.device}")
    return True


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", help="folders that run.sh has written")
    parser.add_argument("--out", type=Path, required=True, help="the page; pictures go beside it")
    parser.add_argument("--device", help="of several devices in the records, the one the page is of")
    args = parser.parse_args()
    records = Records(args.records, args.device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(records, draw(records, args.out.parent)), encoding="utf-8")


if __name__ == "__main__":
    main()
