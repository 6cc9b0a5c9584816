"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .summary import Figures

Column = tuple[str, Callable[[Figures], str]]


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _against(f: Figures) -> str:
    if f.difference is None or f.p_value is None:
        return ""
    some = f"n {f.shared}" if f.shared < f.n else ""  # the baseline has not decoded all of them
    if not f.won and not f.lost:
        return f"same, {some}" if some else "same"
    middle, low, high = (100 * x for x in f.difference)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f}; +{f.won} -{f.lost}, p {f.p_value:.2g}{some and f', {some}'})"


COLUMNS: list[Column] = [
    ("policy", lambda f: f"`{f.setting.policy}`{f.setting.unusual}"),
    ("cache", lambda f: f"`{f.setting.cache}`"),
    ("L", lambda f: str(f.setting.gen_length)),
    ("batch", lambda f: str(f.setting.batch_size)),
    ("task", lambda f: f.task),
    ("n", lambda f: str(f.n)),
    ("accuracy, %", lambda f: f"{100 * f.accuracy:.1f} ({100 * f.interval[0]:.1f} - {100 * f.interval[1]:.1f})"),
    ("against baseline", _against),
    ("NFE", lambda f: f"{f.nfe:.1f}"),
    ("TPF", lambda f: f"{f.tpf:.2f}"),
    ("positions", lambda f: f"{f.positions:.0f}"),
    ("tokens/s", lambda f: f"{f.rate:.1f} ({f.spread[0]:.0f} - {f.spread[1]:.0f})"),
    ("tokens/CPU s", lambda f: f"{f.cpu_rate:.1f}"),
    ("speed", lambda f: _times(f.speedup)),
    ("median", lambda f: _times(f.speedup_median)),
    ("first token, ms", lambda f: f"{1e3 * f.first_token:.0f}"),
    ("outside", lambda f: f"{100 * f.outside:.0f} %"),
    ("moving", lambda f: "" if f.moving is None else f"{100 * f.moving:.1f} %"),
    ("latency, s", lambda f: "" if f.latency is None else f"{f.latency[0]:.2f} (95 %: {f.latency[1]:.2f})"),
    ("peak, MB", lambda f: "" if f.peak_bytes is None else f"{f.peak_bytes / 1e6:.0f}"),
]


ENVIRONMENT = ("model", "fingerprint", "tokenizer", "device", "dtype", "threads", "compile", "torch", "unmask")


def columns(figures: Sequence[Figures]) -> list[Column]:
    """``COLUMNS``, and where figures are of several environments one that tells these apart."""
    differ = [key for key in ENVIRONMENT if len({f.environment.get(key) for f in figures}) > 1]
    on: Column = ("on", lambda f: ", ".join(f"{key} {f.environment.get(key, 'none')}" for key in differ))
    return [*COLUMNS, *([on] if differ else [])]


def namer(figures: Sequence[Figures], *without: str) -> Callable[[Figures], str]:
    """What to put behind the label of each: the columns, but for those ``without``, that tell it from the others."""
    words = {"L": ", gen_length ", "batch": ", batch size ", "task": ", ", "on": ", "}
    cells = [(words[head], cell) for head, cell in columns(figures) if head in words and head not in without]
    differ = [(word, cell) for word, cell in cells if len({cell(f) for f in figures}) > 1]
    return lambda f: "".join(word + cell(f) for word, cell in differ)


def table(figures: Sequence[Figures], chosen: Sequence[Column] | None = None) -> str:
    """One line per setting and task; columns whose values are all the same are said once, above."""
    chosen = columns(figures) if chosen is None else chosen
    cells = [[cell(f) for _, cell in chosen] for f in figures]
    same = {i for i, column in enumerate(zip(*cells, strict=True)) if len(set(column)) == 1 and len(cells) > 1}
    kept = [i for i in range(len(chosen)) if i not in same or i == 0]
    lines = [[chosen[i][0] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in cells)]
    head = ", ".join(f"{chosen[i][0]} {cells[0][i]}" for i in sorted(same - {0}) if cells[0][i])
    return (f"{head}\n\n" if head else "") + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def paper(figures: Sequence[Figures]) -> str:
    """The layout of the SlowFast paper's tables 1 and 2: per task and method the tokens per second, speed and score."""
    more = namer(figures, "task")
    tasks = list(dict.fromkeys(f.task for f in figures))
    lines = ["| task | method | TPS | speed (TPS) | score |", "| --- | --- | --- | --- | --- |"]
    for task in tasks:
        for i, f in enumerate(f for f in figures if f.task == task):
            shown = f"{f.rate:.2f} | {_times(f.speedup)} | {100 * f.accuracy:.2f}"
            lines.append(f"| {'' if i else task} | `{f.setting.label}`{more(f)} | {shown} |")
    return "\n".join(lines)
