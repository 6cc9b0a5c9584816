"""One page, its pictures and its tables, from files of results."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..core.errors import RequestError
from . import figures as draw
from . import ledger
from .run import VERSION, Setting
from .stats import aup
from .summary import ALL, Figures, as_dict, summarise, tallies
from .tables import COLUMNS, paper, table


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
        own = list(ledger.read(path))
        if any(row.get("version") != VERSION for row in own):
            raise RequestError(f"{path} is not a file of `unmask bench`, or of another version of it")
        if not any(row["kind"] == "batch" for row in own):
            raise RequestError(f"{path} holds no results")
        rows += own
    return rows


def parallelism(figures: Sequence[Figures]) -> list[tuple[str, int, float]]:
    """Label, number of settings and accuracy under parallelism of each policy with each cache and length.

    The points of one curve are the settings of one policy (thresholds, counts); those of a single setting are left out.
    """
    curves: dict[str, dict[float, float]] = defaultdict(dict)
    for f in (f for f in figures if f.setting.eos_stop):
        s = f.setting
        name = f"{s.policy.partition('(')[0]}{'' if s.cache == 'none' else f' + {s.cache}'}, gen_length {s.gen_length}"
        curves[f"{name}, {f.task}"][f.tpf] = 100 * f.accuracy
    best = {task: max(100 * f.accuracy for f in figures if f.task == task) for task in {f.task for f in figures}}
    found = [
        (name, len(points), aup(points, best[name.rpartition(", ")[2]]))
        for name, points in curves.items()
        if len(points) > 1 and best[name.rpartition(", ")[2]] > 0
    ]
    return sorted(found, key=lambda line: -line[2])


def overall(figures: Sequence[Figures]) -> list[Figures]:
    """What stands for a setting: all its tasks together, or its only one."""
    whole = [f for f in figures if f.task == ALL]
    covered = {(f.setting, f.environment["run"]) for f in whole}
    return whole + [f for f in figures if (f.setting, f.environment["run"]) not in covered]


def pictures(figures: Sequence[Figures], speed: str) -> Iterator[Picture]:
    """Everything that can be drawn of these figures."""
    whole = overall(figures)
    shapes = list(dict.fromkeys((f.setting.gen_length, f.setting.batch_size, f.task) for f in whole))
    for length, size, task in shapes:
        own = [f for f in whole if (f.setting.gen_length, f.setting.batch_size, f.task) == (length, size, task)]
        if len(own) > 1:
            caption = f"Accuracy against speed, gen_length {length}, batch size {size}, {task}"
            yield Picture(f"pareto-{length}-{size}-{_plain(task)}.png", caption, draw.pareto(own, speed))
    for number, (name, group) in enumerate(draw.sweeps(whole)):
        yield Picture(f"sweep-{number}.png", f"Thresholds of SlowFast, {name}", draw.sweep(group))
    if len({f.setting.gen_length for f in whole}) > 1 and any(f.speedup is not None for f in whole):
        yield Picture("lengths.png", "Speed against the baseline over gen_length", draw.lengths(whole))


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in Path(text).stem)


def write(paths: Sequence[Path], folder: Path, baseline: tuple[str, str], speed: str) -> list[Path]:
    """Write ``index.html``, ``tables.md``, ``figures.json`` and the pictures.

    Returns:
        The files.

    Raises:
        RequestError: see :func:`load`; the folder cannot be made; matplotlib is missing.
    """
    figures = summarise(sorted(tallies(load(paths)), key=lambda t: _rank(t.setting, baseline)), baseline)
    drawn = list(pictures(figures, speed))
    commands = list(dict.fromkeys(f.environment["command"] for f in figures))
    whole = overall(figures)
    texts = {
        "index.html": page(figures, drawn, commands),
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


def _rank(setting: Setting, baseline: tuple[str, str]) -> tuple[Any, ...]:
    """By length and batch size, the baseline first."""
    own = setting.policy, setting.cache
    return setting.gen_length, setting.batch_size, own != baseline, setting.eos_stop, *own


def page(figures: Sequence[Figures], drawn: Sequence[Picture], commands: Sequence[str]) -> str:
    """A page that needs nothing else: pictures inside, no network."""
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    places = {f.environment["run"]: f.environment for f in figures}.values()
    said = ("model", "device", "dtype", "threads", "torch", "unmask", "commit")
    about = "".join(f"<li>{escape(', '.join(f'{k} {e[k]}' for k in said))}</li>" for e in places)
    shown = "".join(
        f'<figure><img alt="{escape(p.caption)}" src="data:image/png;base64,{base64.b64encode(p.png).decode()}">'
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in drawn
    )
    area = parallelism(figures)
    under = _table(("decoder", "settings", "AUP"), [(n, str(k), f"{a:.1f}") for n, k, a in area]) if area else ""
    whole = overall(figures)
    parts = {
        "about": f"<ul>{about}</ul>",
        "commands": "".join(f"<pre>{escape(c)}</pre>" for c in commands),
        "pictures": shown,
        "overall": _figures(whole),
        "tasks": _figures(figures) if len(figures) > len(whole) else "",
        "aup": under and f"<h2>Accuracy under parallelism</h2>{under}",
    }
    for name, html in parts.items():
        template = template.replace(f"<!--{name}-->", html)
    return template


def _figures(figures: Sequence[Figures]) -> str:
    return _table([head for head, _ in COLUMNS], [[cell(f).replace("`", "") for _, cell in COLUMNS] for f in figures])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col"><button>{escape(cell)}</button></th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
