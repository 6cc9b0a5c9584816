"""One page, its pictures and its tables, from files of results."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from ..core.errors import RequestError
from . import figures as draw
from . import lines
from .run import Setting
from .stats import aup
from .summary import Baseline, Figures, as_dict, summarise, tallies
from .tables import ENVIRONMENT, columns, namer, paper, table


@dataclass(frozen=True)
class Picture:
    """A PNG with the name of its file and a caption."""

    name: str
    caption: str
    png: bytes


def load(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of several files.

    Raises:
        RequestError: a file is missing, holds something else, or no result.
    """
    rows = []
    for path in paths:
        if not path.is_file():
            raise RequestError(f"no file {path}; expected JSON lines of `unmask bench`")
        own = lines.read(path)
        if not any(row["kind"] == "batch" for row in own):
            raise RequestError(f"{path} holds no results")
        rows += own
    return rows


def parallelism(figures: Sequence[Figures]) -> list[tuple[str, int, float]]:
    """Label, number of settings and accuracy under parallelism of each policy with each cache and length.

    The points of one curve are the settings of one policy (thresholds, counts), or of one wrapper around one policy;
    those of a single setting are left out, as is what runs without early stop. The best accuracy is that of all
    settings with the same task, length and run.
    """
    curves: dict[tuple[str, tuple[Any, ...]], list[tuple[float, float]]] = defaultdict(list)
    best: dict[tuple[Any, ...], float] = defaultdict(float)
    more = namer(figures, "L", "task")
    for f in (f for f in figures if f.setting.eos_stop):
        s = f.setting
        name = f"{replace(s, policy=s.family).label}, gen_length {s.gen_length}{more(f)}, {f.task}"
        peers = f.task, s.gen_length, f.environment["run"]
        curves[name, peers].append((f.tpf, 100 * f.accuracy))
        best[peers] = max(best[peers], 100 * f.accuracy)
    found = [
        (name, len(points), aup(points, best[peers]))
        for (name, peers), points in curves.items()
        if len(points) > 1 and best[peers] > 0
    ]
    return sorted(found, key=lambda line: -line[2])


def overall(figures: Sequence[Figures]) -> list[Figures]:
    """What stands for a setting: all its tasks together, or its only one."""
    return list({(f.setting, f.environment["run"]): f for f in figures}.values())  # the last of each


def pictures(figures: Sequence[Figures], speed: str) -> Iterator[Picture]:
    """Everything that can be drawn of these figures."""
    whole = overall(figures)
    shapes: dict[tuple[Any, ...], list[Figures]] = defaultdict(list)
    for f in whole:
        shapes[f.setting.gen_length, f.setting.batch_size, f.task, f.environment["run"]].append(f)
    more, taken = namer(whole, "L", "batch", "task"), Counter[str]()
    for (length, size, task, _), own in shapes.items():
        if len(own) > 1:
            caption = f"Accuracy against speed, gen_length {length}, batch size {size}, {task}{more(own[0])}"
            name = f"pareto-{length}-{size}-{_plain(task)}"
            taken[name] += 1
            again = f"-{taken[name]}" if taken[name] > 1 else ""
            yield Picture(f"{name}{again}.png", caption, draw.pareto(own, speed))
    for number, (name, group) in enumerate(draw.sweeps(whole)):
        yield Picture(f"sweep-{number}.png", f"Thresholds of SlowFast, {name}", draw.sweep(group))
    if len({f.setting.gen_length for f in whole}) > 1 and any(f.speedup is not None for f in whole):
        yield Picture("lengths.png", "Speed against the baseline over gen_length", draw.lengths(whole))


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in Path(text).stem)[:60]


def write(paths: Sequence[Path], folder: Path, baseline: Baseline | None, speed: str) -> list[Path]:
    """Write ``index.html``, ``tables.md``, ``figures.json`` and the pictures.

    Returns:
        The files.

    Raises:
        RequestError: see :func:`load`; the folder cannot be made; matplotlib is missing.
    """
    rows = load(paths)
    figures = summarise(sorted(tallies(rows), key=lambda t: _rank(t.setting, baseline)), baseline)
    drawn = list(pictures(figures, speed))
    whole = overall(figures)
    texts = {
        "index.html": page(figures, drawn, [row for row in rows if row["kind"] == "run"]),
        "tables.md": f"{table(whole)}\n\n{table(figures)}\n\n{paper(figures)}\n",
        "figures.json": json.dumps([as_dict(f) for f in figures], indent=1) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for one in drawn:
            (folder / one.name).write_bytes(one.png)
    except OSError as error:
        raise RequestError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return [folder / name for name in (*texts, *(p.name for p in drawn))]


def _rank(setting: Setting, baseline: Baseline | None) -> tuple[Any, ...]:
    """By length and batch size, the baseline first."""
    own = setting.policy, setting.cache, setting.eos_stop
    return setting.gen_length, setting.batch_size, own != baseline, own


def page(figures: Sequence[Figures], drawn: Sequence[Picture], runs: Sequence[dict[str, Any]]) -> str:
    """A page that needs nothing else: pictures inside, no network. ``runs``: the lines of that kind."""
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    said = (*ENVIRONMENT, "commit")
    places = dict.fromkeys(", ".join(f"{key} {row[key]}" for key in said if key in row) for row in runs)
    shown = "".join(
        f'<figure><img alt="{escape(p.caption)}" src="data:image/png;base64,{base64.b64encode(p.png).decode()}">'
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in drawn
    )
    area = parallelism(figures)
    under = _table(("decoder", "settings", "AUP"), [(n, str(k), f"{a:.1f}") for n, k, a in area]) if area else ""
    whole = overall(figures)
    parts = {
        "about": f"<ul>{''.join(f'<li>{escape(place)}</li>' for place in places)}</ul>",
        "commands": "".join(f"<pre>{escape(c)}</pre>" for c in dict.fromkeys(row["command"] for row in runs)),
        "pictures": shown,
        "overall": _figures(whole),
        "tasks": _figures(figures) if len(figures) > len(whole) else "",
        "aup": under and f"<h2>Accuracy under parallelism</h2>{under}",
    }
    for name, html in parts.items():
        template = template.replace(f"<!--{name}-->", html)
    return template


def _figures(figures: Sequence[Figures]) -> str:
    chosen = columns(figures)
    return _table([head for head, _ in chosen], [[cell(f).replace("`", "") for _, cell in chosen] for f in figures])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col"><button>{escape(cell)}</button></th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
