"""Pictures of results, as PNG; needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Any

from .. import registry
from ..core.config import parse
from ..core.errors import RequestError, SpecError
from .summary import Figures
from .tables import namer

SPEEDS = {
    "rate": "tokens per second",
    "cpu_rate": "tokens per second of processor time",
    "tpf": "tokens per forward pass",
}
_MARKERS = "osD^vP*X<>hp"
_COLOURS = 20  # of the largest palette


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise RequestError('pictures need matplotlib: pip install "unmask[report]"') from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "grid.alpha": 0.25, "figure.dpi": 110, "savefig.bbox": "tight"})  # fmt: skip
    return plt


def _png(figure: Any) -> bytes:
    from matplotlib.pyplot import close

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    close(figure)
    return buffer.getvalue()


def front(figures: Sequence[Figures], speed: str) -> list[Figures]:
    """Those that no other beats in both speed and accuracy, from slow to fast (Pareto)."""
    kept: list[Figures] = []
    for one in sorted(figures, key=lambda f: (-getattr(f, speed), -f.accuracy)):
        if not kept or one.accuracy > kept[-1].accuracy:
            kept.append(one)
    return kept[::-1]


def pareto(figures: Sequence[Figures], speed: str = "rate") -> bytes:
    """Accuracy with its interval against speed; a marker per cache, a line along the front. Policies are told apart by
    colour; where there are more of them than colours, by numbers in the order given, caches then by colour, and a
    second picture shows the fast and accurate ones closer.
    """
    plt = _pyplot()
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(dict.fromkeys(f.setting.family for f in figures))
    caches = list(dict.fromkeys(f.setting.cache for f in figures))
    mark = {cache: _MARKERS[i % len(_MARKERS)] for i, cache in enumerate(caches)}
    numbered = len(names) > _COLOURS
    told = caches if numbered else names  # what colours tell apart
    shade = {one: plt.get_cmap("tab10" if len(told) <= 10 else "tab20")(i % _COLOURS) for i, one in enumerate(told)}

    def draw(axes: Any, shown: Sequence[Figures]) -> None:
        best = front(shown, speed)
        axes.step(
            [getattr(f, speed) for f in best], [100 * f.accuracy for f in best], where="pre", color="0.6", zorder=1
        )
        for f in shown:
            low, high = (abs(100 * (edge - f.accuracy)) for edge in f.interval)
            place = getattr(f, speed), 100 * f.accuracy
            colour = shade[f.setting.cache if numbered else f.setting.family]
            axes.errorbar(*place, yerr=[[low], [high]], fmt=mark[f.setting.cache], ms=6, color=colour, elinewidth=0.7,
                          alpha=0.9)  # fmt: skip
            if numbered:
                axes.annotate(str(1 + figures.index(f)), place, xytext=(4, 2), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", xlabel=SPEEDS[speed], ylabel="accuracy, %")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())

    if numbered:
        canvas, both = plt.subplots(1, 2, figsize=(15, 6.5))
        near = [f for f in figures if _near(f, figures, speed)]
        for axes, shown in zip(both, (figures, near), strict=True):
            draw(axes, shown)
        handles = [Line2D([], [], ls="", label=f"{i}  {f.setting.family}") for i, f in enumerate(figures, start=1)]
        handles += [Line2D([], [], color=shade[c], marker=mark[c], ls="", label=c) for c in caches]
    else:
        canvas, axes = plt.subplots(figsize=(9, 5.5))
        draw(axes, figures)
        handles = [Line2D([], [], color=shade[n], marker="o", ls="", label=n) for n in names]
        handles += [Line2D([], [], color="0.3", marker=mark[c], ls="", label=c) for c in caches]
    canvas.axes[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return _png(canvas)


def _near(one: Figures, figures: Sequence[Figures], speed: str) -> bool:
    """Whether it is at most eight points less accurate than the best, and at least half as fast as the fastest."""
    best, fastest = max(f.accuracy for f in figures), max(getattr(f, speed) for f in figures)
    return one.accuracy >= best - 0.08 and getattr(one, speed) >= fastest / 2


def sweeps(figures: Sequence[Figures], x: str = "tau_min", y: str = "tau_high") -> list[tuple[str, list[Figures]]]:
    """Groups of settings that differ in two parameters of their policy only, with several values of each."""
    groups: dict[str, list[Figures]] = {}
    for f in figures:
        try:
            policy = registry.policy(f.setting.policy)
        except SpecError:  # of a plug-in or a version that is not here
            continue
        if hasattr(policy, x) and hasattr(policy, y):
            spec = parse(f.setting.policy)  # what was written: the object's other defaults may follow from the two
            rest = replace(spec, kwargs=tuple(pair for pair in spec.kwargs if pair[0] not in (x, y)))
            groups.setdefault(f"{replace(f.setting, policy=str(rest))} {f.task} {f.environment['run']}", []).append(f)

    def values(group: Sequence[Figures], name: str) -> set[float]:
        return {getattr(registry.policy(f.setting.policy), name) for f in group}

    found = [g for g in groups.values() if len(values(g, x)) > 1 and len(values(g, y)) > 1]
    more = namer(figures)
    return [(f"{g[0].setting.cache}{more(g[0])}", g) for g in found]


def sweep(figures: Sequence[Figures], x: str = "tau_min", y: str = "tau_high") -> bytes:
    """Accuracy and tokens per forward pass over two parameters (SlowFast paper, figure 4)."""
    plt = _pyplot()
    cells = {tuple(getattr(registry.policy(f.setting.policy), n) for n in (x, y)): f for f in figures}
    columns, rows = (sorted({key[i] for key in cells}) for i in (0, 1))
    canvas, both = plt.subplots(1, 2, figsize=(2.2 + 1.5 * len(columns), 1.8 + 0.55 * len(rows)))
    shown: list[tuple[str, Callable[[Figures], float]]] = [
        ("accuracy, %", lambda f: 100 * f.accuracy),
        ("tokens per forward pass", lambda f: f.tpf),
    ]
    for axes, (title, value) in zip(both, shown, strict=True):
        grid = [[value(cells[c, r]) if (c, r) in cells else nan for c in columns] for r in rows]
        image = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
        for i, line in enumerate(grid):
            for j, number in enumerate(line):
                if not isnan(number):
                    ink = "black" if image.norm(number) > 0.6 else "white"
                    axes.text(j, i, f"{number:.1f}", ha="center", va="center", color=ink)
        axes.set(title=title, xlabel=x)
        axes.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
        axes.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
        axes.grid(visible=False)
    both[0].set(ylabel=y)
    return _png(canvas)


def lengths(figures: Sequence[Figures], value: str = "speedup", title: str = "speed against the baseline") -> bytes:
    """A value over gen_length, one line per decoder."""
    lines: dict[str, list[tuple[int, float]]] = {}
    more = namer(figures, "L")
    for f in figures:
        if getattr(f, value) is not None:
            lines.setdefault(f.setting.label + more(f), []).append((f.setting.gen_length, getattr(f, value)))
    return over_lengths(lines, title)


def over_lengths(lines: Mapping[str, Sequence[tuple[int, float]]], title: str) -> bytes:
    """Named lines of (gen_length, value); both axes logarithmic."""
    plt = _pyplot()
    canvas, axes = plt.subplots(figsize=(7.5, 4.5))
    for index, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="os"[index // 10 % 2], label=name)  # there are ten colours
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="gen_length", ylabel=title)
    known = sorted({length for points in lines.values() for length, _ in points})
    axes.set_xticks(known, [str(length) for length in known])
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.15))
    return _png(canvas)
