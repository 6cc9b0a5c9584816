"""What a person sees while a run goes on; all of it on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..api import Model
    from ..engine.loop import Step
    from ..engine.request import Request
    from ..results import Result

_FRAME_SECONDS = 0.04  # the least time a step stays on the screen


@contextmanager
def loading(model: str | None) -> Iterator[None]:
    """Tell a terminal that a model is being read; None: the bundled one."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"loading {model or 'unmask-tiny'}"):
        yield


class Meter:
    """A progress bar on a terminal; elsewhere nothing.

    Args:
        columns: what stands behind the bar and its counts: "elapsed", "remaining", or the name of a field of text.
        start: ``description``, ``total`` and ``completed`` to begin with.
    """

    def __init__(self, *columns: str, **start: Any) -> None:
        self.progress: Any = None
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        times = {"elapsed": TimeElapsedColumn, "remaining": TimeRemainingColumn}
        more = [times[name]() if name in times else TextColumn(f"{{task.fields[{name}]}}") for name in columns]
        parts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more
        self.progress = Progress(*parts, console=Console(stderr=True), redirect_stdout=False, transient=True)
        self.task = self.progress.add_task(**{"description": "", **dict.fromkeys(columns, ""), **start})

    def __enter__(self) -> Meter:
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def update(self, **changes: Any) -> None:
        """Change ``description``, ``total``, ``completed`` (or ``advance`` by so many) and fields."""
        if self.progress:
            self.progress.update(self.task, **changes)

    def stop(self) -> None:
        """Take the bar away; may be called twice."""
        if self.progress:
            self.progress.stop()


class Display:
    """Shows nothing but, at the end and to a terminal, what one response has cost. Base of the others."""

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def add(self, step: Step, done: Mapping[int, Result]) -> None:
        """One step was made; ``done`` are the results that it finished."""

    def ended(self, results: Sequence[Result]) -> None:
        """Responses have ended somewhere else, where nobody sees the steps."""

    def stop(self) -> None:
        """Leave the terminal as it was; may be called twice."""

    def close(self, finished: Sequence[Result]) -> None:
        """All is done."""
        self.stop()
        if sys.stderr.isatty() and finished:
            tokens, nfe = (sum(getattr(r.stats, key) for r in finished) for key in ("tokens", "nfe"))
            print(
                f"{tokens} tokens in {nfe} forward passes ({tokens / nfe:.2f} tokens per forward pass)", file=sys.stderr
            )


class Bar(Display):
    """A progress bar over the prompts of a batch."""

    def __init__(self, total: int) -> None:
        self.meter = Meter("remaining", "rate", description="decoding", total=total)
        self.tokens, self.began = 0, time.perf_counter()

    def __enter__(self) -> Bar:
        self.meter.__enter__()
        return self

    def add(self, step: Step, done: Mapping[int, Result]) -> None:
        """Move on."""
        self.ended([*done.values()])

    def ended(self, results: Sequence[Result]) -> None:
        """Move on."""
        if results:
            self.tokens += sum(r.stats.tokens for r in results)
            rate = f"{self.tokens / (time.perf_counter() - self.began):.0f} tokens/s"
            self.meter.update(advance=len(results), rate=rate)

    def stop(self) -> None:
        """Take the bar away."""
        self.meter.stop()


class Watch(Display):
    """The canvas as it fills. Each step stays for a moment, so times measured while watching mean little.

    Args:
        lm: the model.
        requests: what is decoded.
        last: whether the last canvas of each request stays on the screen.
    """

    def __init__(self, lm: Model, requests: Sequence[Request], last: bool = True) -> None:
        from rich.console import Console

        self.lm, self.requests, self.last = lm, {r.id: r for r in requests}, last
        self.console = Console(stderr=True)
        self.live: Any = None
        self.shown = 0.0

    def add(self, step: Step, done: Mapping[int, Result]) -> None:
        """Draw the rows of this step; finished rows stay on the screen, or leave it."""
        forwards = (step.forward + 1).tolist()
        if self.console.is_terminal:
            self._show([self._row(row, *self._text(step, i), forwards[i]) for i, row in enumerate(step.rows)])
        for i, row in enumerate(step.rows):
            if row not in done:
                continue
            tokens, steps = self._text(step, i)
            if self.requests[row].params.stop:  # nothing behind it stays
                tokens, steps = done[row].tokens, done[row].steps
            self.stop()
            if self.last:
                self.console.print(self._row(row, tokens, steps, forwards[i], final=True))

    def _text(self, step: Step, i: int) -> tuple[list[int], list[int]]:
        """A row's tokens from where its text begins, and the forward pass that committed each."""
        request = self.requests[step.rows[i]]
        begin = len(request.prompt) if request.begin is None else request.begin
        own = slice(begin, int(step.canvas.wanted[i]))
        return step.canvas.tokens[i, own].tolist(), step.committed_at[i, own].tolist()

    def _show(self, rows: Sequence[Any]) -> None:
        from rich.console import Group
        from rich.live import Live

        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, transient=True)
            self.live.start()
        time.sleep(max(0.0, self.shown + _FRAME_SECONDS - time.perf_counter()))
        self.live.update(Group(*rows), refresh=True)
        self.shown = time.perf_counter()

    def _row(self, row: int, tokens: list[int], steps: list[int], forward: int, final: bool = False) -> Any:
        from rich.text import Text

        from ..viz import pieces, terminal, until_end

        texts = pieces(self.lm, tokens)
        texts = list(until_end(texts)) if final and not self.requests[row].fixed else texts
        head = f"{row}: forward pass {forward}\n"
        return Text.assemble((head, "bold"), terminal(texts, steps[: len(texts)], forward))

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.live is not None:
            self.live.stop()
            self.live = None
