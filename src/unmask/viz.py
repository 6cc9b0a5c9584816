"""Pictures of a decoding: every token coloured by the forward that committed it, as SVG and in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from rich.text import Text as RichText

    from .api import Model
    from .results import Result

# From early to late; lightness grows steadily, so that the order survives printing in grey and colour blindness.
_RAMP = ((68, 84, 160), (54, 122, 168), (40, 150, 150), (58, 176, 118), (130, 204, 80), (206, 218, 60), (252, 232, 90))
_CARD, _PAPER, _INK, _DIM, _EMPTY = "#161b22", "#161b22", "#e6edf3", "#9aa4b2", "#2d333b"
_CHAR, _LINE, _MARGIN, _WIDTH, _GAP = 8.4, 34, 24, 880, 3
_FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
_SPACE = "\u00a0"  # one that no viewer trims
_STEP_SECONDS, _REST_SECONDS = 0.3, 3.0


def colour(step: int, steps: int) -> str:
    """``#rrggbb`` for forward ``step`` of ``steps``: blue is early, yellow late."""
    at = step / max(steps - 1, 1) * (len(_RAMP) - 1)
    low = min(int(at), len(_RAMP) - 2)
    mixed = (round(a + (b - a) * (at - low)) for a, b in zip(_RAMP[low], _RAMP[low + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ink(background: str) -> str:
    """Black or white, whichever reads better on a ``#rrggbb`` background."""
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "#0d1117" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#ffffff"


@dataclass(frozen=True)
class Piece:
    """One position of a response: its ``text``, the forward that committed it (-1: none did), whether it was given."""

    text: str
    step: int
    given: bool = False


@dataclass(frozen=True)
class Panel:
    """One response to draw; ``rest`` counts the positions behind its end of text."""

    title: str
    prompt: str
    pieces: list[Piece]
    forwards: int
    tokens: int
    rest: int


def panel(lm: Model, title: str, result: Result) -> Panel:
    """What there is to see of a result."""
    decoded = [at for span in result.spans for at in range(span.start, span.start + len(span.tokens))]
    ends = result.stats.tokens < len(decoded)
    shown = decoded[result.stats.tokens] + 1 if ends else len(result.tokens)
    own = set(decoded)
    texts = pieces(lm, result.tokens[:shown])
    prompt = lm.text.decode(result.prompt_tokens) if lm.text else " ".join(map(str, result.prompt_tokens))
    drawn = [Piece(t, s, at not in own) for at, (t, s) in enumerate(zip(texts, result.steps, strict=False))]
    return Panel(title, prompt, drawn, result.stats.nfe, result.stats.tokens, len(result.tokens) - shown)


def pieces(lm: Model, ids: Sequence[int]) -> list[str]:
    """The text of each id, fit to be shown: newlines as ⏎, the end of text as ∎, masks as ·."""
    spec = lm.denoiser.spec
    texts = lm.text.pieces(ids) if lm.text else [f"{i} " for i in ids]
    special = dict.fromkeys(spec.eos, "∎") | {spec.mask: "·"}
    return [special.get(i) or _clean(t) for i, t in zip(ids, texts, strict=True)]


def _clean(text: str) -> str:
    return "".join("⏎" if c == "\n" else c if c.isprintable() else "\ufffd" for c in text)


def svg(lm: Model, responses: Sequence[tuple[str, Result]], *, animate: bool = False) -> str:
    """An SVG picture of (title, result) pairs, one below the other.

    Args:
        lm: the model that made them; tells the text of each token.
        responses: what to draw.
        animate: play the decoding in a loop, all responses forward by forward at the same pace. Where a viewer plays
            no animations, the finished responses are seen.
    """
    panels = [panel(lm, title, result) for title, result in responses]
    steps = max((p.forwards for p in panels), default=1)
    canvas = _Canvas(animate)
    for one in panels:
        canvas.panel(one)
    height = canvas.y + _MARGIN / 2
    style = f"text{{font:14px {_FONT};fill:{_INK};white-space:pre}}.d{{fill:{_DIM}}}.n{{font-size:8px;fill:{_DIM}}}"
    if animate:
        style += _keyframes(steps)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img"><title>{escape("; ".join(p.title for p in panels))}</title>'
        f'<style>{style}</style><rect width="100%" height="100%" rx="10" fill="{_CARD}"/>'
        + "".join(canvas.parts)
        + "</svg>\n"
    )


def _keyframes(steps: int) -> str:
    total = steps * _STEP_SECONDS + _REST_SECONDS
    css = [f"g{{animation:{total:.2f}s step-end infinite}}@media(prefers-reduced-motion:reduce){{g{{animation:none}}}}"]
    for step in range(steps):
        at = 100 * (step + 1) * _STEP_SECONDS / total
        css.append(f"@keyframes k{step}{{0%{{opacity:0}}{at:.2f}%{{opacity:1}}}}.s{step}{{animation-name:k{step}}}")
    return "".join(css)


@dataclass
class _Canvas:
    """Where the next thing is drawn, and what has been."""

    animate: bool
    y: float = _MARGIN / 2
    parts: list[str] = field(default_factory=list)

    def panel(self, one: Panel) -> None:
        """A heading, the prompt, the response, a legend."""
        self.y += _MARGIN
        cost = f"{one.tokens} tokens in {one.forwards} forward{'s' * (one.forwards != 1)}"
        self._text(_MARGIN, one.title, 'font-weight="bold"')
        self._text(_WIDTH - _MARGIN, cost, 'class="d" text-anchor="end"')
        for line in _wrapped(one.prompt):
            self.y += 20
            self._text(_MARGIN, line, 'class="d"')
        self.y += 14
        x = float(_MARGIN)
        for piece in one.pieces:
            width = max(len(piece.text), 1) * _CHAR + 8
            if x + width > _WIDTH - _MARGIN:
                x = self._newline()
            self._chip(x, width, piece, one.forwards)
            x += width + _GAP
            if piece.text.endswith("⏎"):
                x = self._newline()
        if one.rest:
            self.y += 20
            self._text(x + 4, f"{one.rest} more behind the end of text", 'class="n"')
            self.y -= 20
        self.y += _LINE + 14
        self._legend(one.forwards)
        self.y += 8

    def _newline(self) -> float:
        self.y += _LINE
        return float(_MARGIN)

    def _text(self, x: float, text: str, attributes: str = "") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{self.y:.1f}" {attributes}>{escape(_clean(text))}</text>')

    def _chip(self, x: float, width: float, piece: Piece, forwards: int) -> None:
        box = f'<rect x="{x:.1f}" y="{self.y:.1f}" width="{width:.1f}" height="20" rx="4" fill="%s"/>'
        middle, fit = x + width / 2, f'textLength="{len(piece.text) * _CHAR:.1f}" lengthAdjust="spacingAndGlyphs"'
        if piece.given:
            shown = escape(piece.text.replace(" ", _SPACE))
            self.parts.append(f'<text x="{x + 4:.1f}" y="{self.y + 15:.1f}" {fit}>{shown}</text>')
            return
        if piece.step < 0 or self.animate:
            self.parts.append(box % _EMPTY)
        if piece.step < 0:
            return
        back = colour(piece.step, forwards)
        group = f'<g class="s{piece.step}">' if self.animate else "<g>"
        self.parts.append(
            f'{group}{box % back}<text x="{x + 4:.1f}" y="{self.y + 15:.1f}" {fit} style="fill:{ink(back)}">'
            f'{escape(piece.text.replace(" ", _SPACE))}</text><text x="{middle:.1f}" y="{self.y + 28.5:.1f}" class="n" '
            f'text-anchor="middle">{piece.step + 1}</text></g>'
        )

    def _legend(self, forwards: int) -> None:
        self._text(_MARGIN, "forward 1", 'class="n"')
        for i in range(40):
            self.parts.append(
                f'<rect x="{_MARGIN + 52 + i * 4}" y="{self.y - 8:.1f}" width="4.2" height="9" fill="{colour(i, 40)}"/>'
            )
        self._text(_MARGIN + 220, f"{forwards}", 'class="n"')


def _wrapped(prompt: str, lines: int = 5) -> list[str]:
    width = int((_WIDTH - 2 * _MARGIN) / _CHAR)
    split = [part for line in prompt.splitlines() for part in textwrap.wrap(line, width) or [""]]
    return [*split[: lines - 1], split[lines - 1] + " …"] if len(split) > lines else split


def terminal(texts: Sequence[str], steps: Sequence[int], forwards: int) -> RichText:
    """The same for a terminal, as text for ``rich``: positions not decoded are dim, ⏎ also breaks the line."""
    from rich.text import Text

    text = Text(overflow="fold")
    for piece, step in zip(texts, steps, strict=True):
        back = colour(step, forwards)
        text.append(piece, style=f"{ink(back)} on {back}" if step >= 0 else "dim")
        if piece.endswith("⏎"):
            text.append("\n")
    return text


def until_end(texts: Sequence[str]) -> Iterator[str]:
    """Pieces up to the first end of text."""
    for piece in texts:
        yield piece
        if piece == "∎":
            return
