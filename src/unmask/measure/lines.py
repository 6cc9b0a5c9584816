"""The lines of a file of results, as ``unmask bench`` and ``unmask tune`` write them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..core.errors import RequestError
from ..core.schema import Amount, Count, Schema, parse
from . import ledger

VERSION = 1

_Positive = Annotated[int, Field(gt=0, lt=2**63)]
_Some = Annotated[float, Field(gt=0, lt=2.0**63)]


class Run(Schema):
    """What the lines behind it ran on."""

    kind: Literal["run"]
    run: str = Field(description="a name for model, device, dtype, threads and versions")
    model: str
    device: str
    dtype: str
    threads: int
    torch: str
    unmask: str
    commit: str | None
    command: str


class Key(Schema):
    """Setting and problems of a batch."""

    policy: str
    cache: str
    gen_length: _Positive
    batch_size: Count
    eos_stop: bool
    temperature: Amount
    files: str = Field("", description="digest of the files that the policy names")
    arrivals: str = Field("", description="when requests arrive; none: those of a batch start together")
    task: str
    split: str | None
    seed: Count
    first: Count = Field(description="number of the first problem")
    n: _Positive = Field(description="problems")


class Batch(Schema):
    """What one setting made of some problems, and what it cost; lists have one value per problem."""

    kind: Literal["batch"]
    run: str = Field(description="the name of a line of kind run before this one")
    key: Key
    correct: list[Annotated[float, Field(ge=0, le=1)]]
    digest: list[Any] = Field(description="of each text")
    nfe: list[_Some] = Field(description="forward passes")
    tokens: list[Amount] = Field(description="before the first end of text")
    positions: list[Amount] = Field(description="computed, averaged over the layers")
    first_token: list[Amount] = Field(description="seconds to the first token that held")
    seconds: _Some
    cpu_seconds: _Some
    model_seconds: _Some = Field(description="seconds in the network")
    peak_bytes: Count | None = Field(description="most memory; null: not known")
    moving_seconds: Amount | None = Field(None, description="seconds in which requests entered and left")
    engine_seconds: _Some | None = Field(None, description="with arrivals: seconds without waiting for requests")
    latency: list[Amount] | None = Field(None, description="with arrivals: seconds from arrival to end")
    entered: Count | None = Field(None, description="with arrivals: steps in which a request entered")
    entering_peak_bytes: Count | None = Field(None, description="with arrivals: most memory in these steps")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        for name in ("correct", "digest", "nfe", "tokens", "positions", "first_token", "latency"):
            values = getattr(self, name)
            if values is not None and len(values) != self.key.n:
                raise ValueError(f'"{name}" has {len(values)} values for {self.key.n} problems')
        return self


def read(path: Path) -> list[dict[str, Any]]:
    """All lines, checked; none when there is no file.

    Raises:
        RequestError: the file is not one of results or of another version; names the first line that is wrong.
    """
    rows: list[dict[str, Any]] = []
    runs: set[str] = set()
    for line in ledger.read(path):
        row = line.value
        if row.get("version") != VERSION or row.get("kind") not in ("run", "batch"):
            raise RequestError(
                f"{line.where} is not a line of `unmask bench`: expected kind run or batch, and version {VERSION}"
            )
        if row["kind"] == "run":
            runs.add(parse(Run, row, line.where).run)
        elif parse(Batch, row, line.where).run not in runs:
            raise RequestError(f"{line.where}: the line of kind run that describes run {row['run']} is missing")
        rows.append(row)
    return rows
