"""Trace files, line by line, and what is wrong with them. ``docs/trace.md`` describes the format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import RequestError
from .fields import Wrong, field, named, pieces, span, spans, whole, word

VERSION = 1
_MOST = 1 << 20  # positions of a row; far beyond the context of any model


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


@dataclass(frozen=True)
class Row:
    """One prompt of a run: its ids, the length of its response, ``fixed`` tokens {position: id}, its forwards."""

    row: int
    prompt: tuple[int, ...]
    gen_length: int
    fixed: Mapping[int, int]
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
    mask: int
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
    lines = _lines(path)
    found = next(lines, None)
    if found is None:
        raise RequestError(f"{path} is empty; expected a trace, as `unmask generate --trace {path}` writes it")
    number, header, _ = found
    with _at(path, number):
        trace = _header(Path(path).name, header)
    if row is not None and row not in trace.rows:
        raise RequestError(f"{path} has no row {row}; its rows are {_listed(list(trace.rows))}")
    forwards: dict[int, list[Forward]] = {r: [] for r in trace.rows}
    texts, finished, cut = dict(trace.pieces), set[int](), False
    for number, line, whole_ in lines:
        if not whole_:
            cut = True
            break
        with _at(path, number):
            _add(line, trace, forwards, finished)
            texts.update(pieces(line))
    kept = {
        r: replace(own, forwards=tuple(forwards[r]), finished=r in finished)
        for r, own in trace.rows.items()
        if row in (None, r)
    }
    return replace(trace, rows=kept, pieces=texts, truncated=cut)


def _lines(path: str | Path) -> Iterator[tuple[int, Any, bool]]:
    """Number, value and wholeness of each line that is not empty; the value of one cut off is None.

    Raises:
        RequestError: a file that cannot be read, a line that is no JSON.
    """
    try:
        parts = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    for number, part in enumerate(parts, start=1):
        if not part.strip():
            continue
        try:
            value = json.loads(part.decode(), parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            if number == len(parts) and number > 1:
                yield number, None, False
                return
            reason = "cut off or no JSON" if number == len(parts) else f"no JSON: {error}"
            raise RequestError(f"{path} line {number}: {reason}") from None
        yield number, value, True


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


@contextmanager
def _at(path: str | Path, number: int) -> Iterator[None]:
    """Say where the wrong thing is."""
    try:
        yield
    except Wrong as wrong:
        raise RequestError(f"{path} line {number}: {wrong}") from None


def _header(name: str, line: Any) -> Trace:
    if not isinstance(line, dict) or "trace" not in line:
        raise Wrong('no header of a trace; expected {"trace": 1, "policy": ..., "rows": [...], ...}')
    if line["trace"] is True or line["trace"] != VERSION:
        raise Wrong(f"a trace of version {line['trace']!r:.40}; this version of unmask reads version {VERSION}")
    rows = [_row(value) for value in field(line, "rows", list)]
    if not rows or len({r.row for r in rows}) < len(rows):
        raise Wrong('"rows" must be a list of different rows, at least one')
    return Trace(
        name,
        policy=word(line, "policy"),
        cache=word(line, "cache"),
        model=word(line, "model"),
        mask=whole(line.get("mask"), '"mask"'),
        eos=tuple(whole(i, '"eos"') for i in field(line, "eos", list)),
        layers=whole(line.get("layers", 0), '"layers"'),
        rows={r.row: r for r in rows},
        pieces=pieces(line),
        truncated=False,
    )


def _row(value: Any) -> Row:
    if not isinstance(value, dict):
        raise Wrong('"rows" must hold objects with "row", "prompt" and "gen_length"')
    length = whole(value.get("gen_length"), '"gen_length"', 1, _MOST)
    prompt = tuple(whole(i, '"prompt"') for i in field(value, "prompt", list))
    given = value.get("fixed", [])
    try:
        fixed = {whole(at, '"fixed"', 0, length): whole(i, '"fixed"') for at, i in given}
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, Wrong) else Wrong('"fixed" must be [[position, id], ...]') from None
    own = {len(prompt) + at: i for at, i in fixed.items()}
    return Row(whole(value.get("row"), '"row"'), prompt, length, own)


def _add(line: Any, trace: Trace, forwards: dict[int, list[Forward]], finished: set[int]) -> None:
    """One line more: a forward of each of its rows."""
    if not isinstance(line, dict):
        raise Wrong("expected an object, one forward of the run")
    ids = [whole(r, '"rows"') for r in field(line, "rows", list)]
    odd = [r for r in ids if r not in trace.rows] or [r for r in ids if ids.count(r) > 1]
    if odd:
        raise Wrong(f'"rows" has {odd[0]}; the rows of this trace are {_listed(list(trace.rows))}, each once a line')
    of = {name: _per_row(line, name, len(ids)) for name in ("forward", "window", "work")}
    more = {name: _per_row(line, name, len(ids)) if name in line else None for name in ("confidence", "computed")}
    notes = {name: _per_row(line.get("notes"), name, len(ids)) for name in field(line, "notes", dict, {})}
    committed = _by_row(line, "committed", ids, 4)
    remasked = _by_row(line, "remasked", ids, 2)
    for i, r in enumerate(ids):
        row, before = trace.rows[r], len(forwards[r])
        if whole(of["forward"][i], '"forward"') != before:
            raise Wrong(f'"forward" of row {r} is {of["forward"][i]}, but {before} forwards precede it')
        inside = (len(row.prompt), row.length - 1)
        asked, done = more["confidence"], more["computed"]
        forward = Forward(
            index=whole(line.get("index"), '"index"'),
            window=spans(of["window"][i], "window"),
            committed=tuple(
                (whole(at, '"committed"', *inside), whole(token, '"committed"'), named(sure, '"committed"', 1))
                for at, token, sure in committed[r]
            ),
            remasked=tuple(whole(at, '"remasked"', *inside) for (at,) in remasked[r]),
            confidence=None if asked is None else tuple(_asked(part, *inside) for part in _list(asked[i])),
            computed=None if done is None else tuple(span(part, "computed", _MOST) for part in _list(done[i])),
            work=named(of["work"][i], '"work"'),
            notes={name: _note(values[i], name) for name, values in notes.items()},
            seconds=named(line.get("seconds"), '"seconds"'),
        )
        forwards[r].append(forward)
    finished.update(whole(r, '"finished"') for r in field(line, "finished", list))


def _per_row(line: Any, name: str, rows: int) -> list[Any]:
    values = field(line, name, list)
    if len(values) != rows:
        raise Wrong(f'"{name}" has {len(values)} values for {rows} rows')
    return list(values)


def _by_row(line: Any, name: str, ids: list[int], size: int) -> dict[int, list[list[Any]]]:
    """``[row, ...]`` lists of so many values, by row, without the row."""
    found: dict[int, list[list[Any]]] = {r: [] for r in ids}
    for part in field(line, name, list):
        if not isinstance(part, list) or len(part) != size or isinstance(part[0], (list, dict)) or part[0] not in found:
            raise Wrong(f'"{name}" has {part!r:.60}; expected lists of {size} that begin with one of its rows')
        found[part[0]].append(part[1:])
    return found


def _asked(part: Any, low: int, high: int) -> tuple[int, tuple[float, ...]]:
    if not isinstance(part, list) or len(part) != 2 or not isinstance(part[1], list):
        raise Wrong(f'"confidence" has {part!r:.60}; expected [first position, [confidences]]')
    first = whole(part[0], '"confidence"', low, high - len(part[1]) + 1)
    return first, tuple(named(c, '"confidence"', 1) for c in part[1])


def _note(value: Any, name: str) -> bool | float:
    return value if isinstance(value, bool) else named(value, f'the note "{name:.40}"', low=-float(_MOST))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Wrong(f"expected a list for each row, got {value!r:.40}")
    return value


def _listed(rows: list[int]) -> str:
    """``3``, ``0 to 7`` or ``0, 2, 5``."""
    if len(rows) > 2 and rows == list(range(rows[0], rows[-1] + 1)):
        return f"{rows[0]} to {rows[-1]}"
    return ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")
