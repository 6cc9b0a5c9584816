"""The pictures of docs/results/slowfast.md."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl

from unmask.measure import figures
from unmask.measure.run import Setting

mpl.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]


def thresholds(rows: Sequence[Row]) -> bytes:
    """Accuracy and tokens per forward over ``tau_min`` and ``tau_high`` (the paper's figure 4)."""
    found: list[Any] = [
        SimpleNamespace(setting=Setting(r["policy"], r["cache"], r["gen_length"]), accuracy=r["right"] / r["n"],
                        tpf=r["tpf"]) for r in rows
    ]  # fmt: skip
    return figures.sweep(found)


def speeds(rows: Sequence[Row], label: Callable[[Row], str]) -> bytes:
    """Tokens per second of processor time over ``gen_length``, a line per method."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        lines.setdefault(label(row).replace("`", ""), []).append((row["gen_length"], row["cpu_rate"]))
    return figures.over_lengths(lines, "tokens per second of processor time")


def cost(rows: Sequence[Row]) -> bytes:
    """Share of the exploratory phase of forwards, positions and time, over the length of the canvas."""
    canvas, every = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
    canvases = sorted({r["canvas"] for r in rows})
    for axes, key in zip(every, ("forwards", "positions", "time"), strict=True):
        for index, policy in enumerate(dict.fromkeys(r["policy"] for r in rows)):
            own = [(r["canvas"], 100 * r["slow"][key] / (r["slow"][key] + r["fast"][key])) for r in rows
                   if r["policy"] == policy]  # fmt: skip
            axes.plot(
                *zip(*own, strict=True), marker="o", ms=max(3, 9 - 2 * index), lw=max(1, 6 - 1.5 * index), label=policy
            )  # some agree
        axes.set_xscale("log", base=2)
        axes.set_xticks(canvases, [str(length) for length in canvases], fontsize=7)
        axes.set(xlabel="canvas, tokens", title=key)
        axes.grid(alpha=0.25)
    every[0].set(ylabel="exploratory phase, %", ylim=(0, 100))
    every[0].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2))
    return _png(canvas)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
