"""Trace files: :mod:`.schema` checks each line, this module that the lines fit each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core import jsonl
from ..core.errors import RequestError
from ..core.schema import parse
from . import VERSION
from .schema import ForwardLine, HeaderLine, RowLine


@dataclass(frozen=True)
class Forward:
    """What one forward did to one row. Positions count from the start of the prompt.

    Attributes:
        index: forwards of the run before this one.
        window: ``(first, one behind the last)`` of the stretches that the policy worked in.
        committed: ``(position, token, confidence)`` of the tokens written.
        remasked: positions turned back into masks.
        confidence: ``(first, confidences)`` of the stretches that were asked; None: the trace does not tell.
        computed: ``(first, one behind the last, layers)`` of the stretches that so many layers computed; behind the
            row's end are probes. None: the trace does not tell.
        work: positions computed, averaged over the layers.
        notes: what the policy tells: phases (true or false), ``start`` and ``end`` of its span, other numbers.
        seconds: duration of the whole forward, all rows of the batch together.
    """

    index: int
    window: tuple[tuple[int, int], ...]
    committed: tuple[tuple[int, int, float], ...]
    remasked: tuple[int, ...]
    confidence: tuple[tuple[int, tuple[float, ...]], ...] | None
    computed: tuple[tuple[int, int, int], ...] | None
    work: float
    notes: Mapping[str, bool | float]
    seconds: float
    length: int | None


@dataclass(frozen=True)
class Row:
    """One prompt of a run: its ids, the length of its response at its longest and when it begins (``begin``), ``fixed``
    tokens {position: id}, its forwards.
    """

    row: int
    prompt: tuple[int, ...]
    gen_length: int
    fixed: Mapping[int, int]
    begin: int
    forwards: tuple[Forward, ...] = ()
    finished: bool = False

    @property
    def length(self) -> int:
        """Positions of prompt and response."""
        return len(self.prompt) + self.gen_length


@dataclass(frozen=True)
class Trace:
    """A run: with what it decoded, its ``rows`` by id, the text of ids (``pieces``).

    ``layers`` of the model, 0: the trace does not tell. ``truncated``: the last line was cut off and is left out.
    """

    name: str
    policy: str
    cache: str
    model: str
    mask: int | None
    eos: tuple[int, ...]
    layers: int
    rows: Mapping[int, Row]
    pieces: Mapping[int, str]
    truncated: bool


def read(path: str | Path, row: int | None = None) -> Trace:
    """Read and check a trace.

    Args:
        path: a file written by ``unmask generate --trace``.
        row: keep this row alone.

    Raises:
        RequestError: no such file, no such row, not a trace, or one of another version; names the line. Only the last
            line of a file may be cut off, as a run leaves it that was killed.
    """
    lines = jsonl.lines(jsonl.read(path), path, torn=True)
    first = next(lines, None)
    if first is None:
        raise RequestError(f"{path} is empty; expected a trace, as `unmask generate --trace {path}` writes it")
    header = _header(first)
    rows = {one.row: _row(one) for one in header.rows}
    if row is not None and row not in rows:
        raise RequestError(f"{path} has no row {row}; its rows are {_listed(list(rows))}")
    forwards: dict[int, list[Forward]] = {r: [] for r in rows}
    pieces, finished, cut = dict(header.pieces), set[int](), False
    for line in lines:
        if line.torn:
            cut = True
            break
        one = parse(ForwardLine, line.value, line.where)
        try:
            for at, r in enumerate(one.rows):
                if one.length is not None:
                    rows[r] = replace(rows[r], gen_length=max(rows[r].gen_length, one.length[at]))
                forwards[r].append(_forward(one, at, rows[r], forwards[r]))
        except KeyError as error:
            known = _listed(list(rows))
            raise RequestError(
                f'{line.where}: "rows" has {error.args[0]}; the rows of this trace are {known}'
            ) from None
        except ValueError as error:
            raise RequestError(f"{line.where}: {error}") from None
        pieces |= one.pieces
        finished.update(one.finished)
    kept = {
        r: replace(own, forwards=tuple(forwards[r]), finished=r in finished)
        for r, own in rows.items()
        if row in (None, r)
    }
    return Trace(
        Path(path).name, header.policy, header.cache, header.model, header.mask, tuple(header.eos), header.layers,
        rows=kept, pieces=pieces, truncated=cut,
    )  # fmt: skip


def _header(line: jsonl.Line) -> HeaderLine:
    value = line.value
    if not isinstance(value, dict) or "trace" not in value:
        raise RequestError(
            f'{line.where}: no header of a trace; expected {{"trace": {VERSION}, "policy": ..., "rows": [...], ...}}'
        )
    if value["trace"] is True or value["trace"] != VERSION:
        found = f"{value['trace']!r:.40}"
        raise RequestError(f'{line.where}: "trace" is version {found}; this version of unmask reads version {VERSION}')
    return parse(HeaderLine, value, line.where)


def _row(line: RowLine) -> Row:
    fixed = {len(line.prompt) + at: token for at, token in line.fixed}
    return Row(line.row, tuple(line.prompt), line.gen_length, fixed, line.gen_length)


def _forward(line: ForwardLine, at: int, row: Row, before: Sequence[Forward]) -> Forward:
    """What the forward pass did to one of its rows.

    Raises:
        ValueError: it does not fit the row, or what precedes it; names the field.
    """
    if line.forward[at] != len(before):
        raise ValueError(f'"forward" of row {row.row} is {line.forward[at]}, but {len(before)} precede it')
    named = [*(one[0] for one in line.committed), *(one[0] for one in line.remasked)]
    odd = [r for r in named if r not in line.rows]
    if odd or line.rows.count(row.row) > 1:
        name = '"committed" or "remasked"' if odd else '"rows"'
        raise ValueError(f"{name} has row {[*odd, row.row][0]}; accepted: the rows of the line, {line.rows}, once each")
    committed = tuple((position, token, sure) for r, position, token, sure in line.committed if r == row.row)
    remasked = tuple(position for r, position in line.remasked if r == row.row)
    predicted = None if line.confidence is None else tuple((f, tuple(c)) for f, c in line.confidence[at])
    _inside(row, "committed", [position for position, *_ in committed])
    _inside(row, "remasked", remasked)
    _inside(row, "confidence", [p for first, c in predicted or () for p in (first, first + len(c) - 1)])
    return Forward(
        index=line.index,
        window=tuple(line.window[at]),
        committed=committed,
        remasked=remasked,
        confidence=predicted,
        computed=None if line.computed is None else tuple(line.computed[at]),
        work=line.work[at],
        notes={name: values[at] for name, values in line.notes.items()},
        seconds=line.seconds,
        length=None if line.length is None else line.length[at],
    )


def _inside(row: Row, name: str, positions: Sequence[int]) -> None:
    """Positions of the response."""
    first, last = len(row.prompt), row.length - 1
    odd = [position for position in positions if not first <= position <= last]
    if odd:
        raise ValueError(f'"{name}" has {odd[0]}; accepted: {first} to {last}')


def _listed(rows: list[int]) -> str:
    """``3``, ``0 to 7`` or ``0, 2, 5``."""
    if len(rows) > 2 and rows == list(range(rows[0], rows[-1] + 1)):
        return f"{rows[0]} to {rows[-1]}"
    return ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")
