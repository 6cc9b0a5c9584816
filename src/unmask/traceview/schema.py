"""The lines of a trace file. ``docs/trace.md`` describes the format."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..core.schema import Schema

FAR = 1 << 31  # no id, position or count is larger
MOST = 1 << 20  # positions of a row; far beyond the context of any model

Whole = Annotated[int, Field(ge=0, le=FAR)]
Position = Annotated[int, Field(ge=0, le=MOST)]
Number = Annotated[float, Field(ge=0, le=FAR)]
Share = Annotated[float, Field(ge=0, le=1)]
Loose = Field(strict=False)  # JSON has lists where a tuple is meant
Span = Annotated[tuple[Whole, Whole], Loose]
Pieces = dict[Annotated[int, Field(strict=False, ge=0, le=FAR)], str]  # JSON has texts for keys


class RowLine(Schema):
    """One prompt of a run, in the header."""

    row: Whole = Field(description="its id")
    prompt: list[Whole] = Field(description="ids")
    gen_length: Annotated[int, Field(ge=1, le=MOST)] = Field(description="tokens of the response")
    fixed: list[Annotated[tuple[Whole, Whole], Loose]] = Field(
        [], description="[position in the response, id] of tokens that were given in it"
    )

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for at, _ in self.fixed:
            if at >= self.gen_length:
                raise ValueError(f'"fixed" has position {at}; accepted: 0 to {self.gen_length - 1}')
        return self


class HeaderLine(Schema):
    """The first line: what decoded, and the prompts."""

    trace: Literal[1] = Field(description="version of the format")
    policy: str = Field(description="spec")
    cache: str = Field(description="spec")
    model: str = Field(description="name")
    mask: Whole | None = Field(description="id; null: the model has no mask token")
    eos: list[Whole] = Field(description="ids")
    layers: Whole = Field(0, description="of the model; 0: not recorded")
    rows: list[RowLine] = Field(min_length=1, description="the prompts")
    pieces: Pieces = Field({}, description="text of ids")

    @model_validator(mode="after")
    def _different(self) -> Self:
        rows = [one.row for one in self.rows]
        if len(set(rows)) < len(rows):
            raise ValueError(f'"rows" must differ in "row", got {rows!r:.60}')
        return self


class ForwardLine(Schema):
    """One forward pass of some of the prompts; what is named ``per row`` has a value for each of ``rows``."""

    index: Whole = Field(description="forward passes of the run before this one")
    rows: list[Whole] = Field(description="the prompts in this forward pass")
    forward: list[Whole] = Field(description="per row: its own forward passes before this one")
    window: list[list[Span]] = Field(description="per row: [first, one behind the last] of what the policy worked in")
    committed: list[Annotated[tuple[Whole, Position, Whole, Share], Loose]] = Field(
        description="[row, position, token, confidence] of every token written"
    )
    remasked: list[Annotated[tuple[Whole, Position], Loose]] = Field(
        description="[row, position] of every token turned back into a mask"
    )
    confidence: list[list[Annotated[tuple[Position, list[Share]], Loose]]] | None = Field(
        None, description="per row: [first position, [confidence, ...]] of what was predicted"
    )
    work: list[Number] = Field(description="per row: positions computed, averaged over the layers")
    computed: list[list[Annotated[tuple[Position, Position, Whole], Loose]]] | None = Field(
        None, description="per row: [first, one behind the last, layers] of what was computed"
    )
    length: list[Whole] | None = Field(
        None, description="per row: tokens of the response after it, where the policy changes lengths"
    )
    notes: dict[str, list[bool | Annotated[float, Field(ge=-FAR, le=FAR)]]] = Field(
        {}, description="per row: what the policy reports, by name"
    )
    seconds: Number = Field(description="duration")
    finished: list[Whole] = Field(description="prompts that this forward pass finished")
    pieces: Pieces = Field({}, description="text of ids that no line before has shown")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        """As many values as rows, and no range that is empty or runs backwards."""
        named = {
            name: getattr(self, name) for name in ("forward", "window", "confidence", "work", "computed", "length")
        }
        for name, values in {**named, **self.notes}.items():
            if values is not None and len(values) != len(self.rows):
                raise ValueError(f'"{name:.40}" has {len(values)} values for {len(self.rows)} rows')
        for name, least, spans in (("window", 0, self.window), ("computed", 1, self.computed or [])):
            for first, last, *_ in (span for own in spans for span in own):
                if last < first + least:
                    raise ValueError(f'"{name}" has the range {first} to {last}; accepted: first, one behind the last')
        return self
