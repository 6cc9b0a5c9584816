"""What has been answered, in a file that survives a kill, and what the answers to each task cost."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..core.errors import RequestError
from ..core.schema import Amount, Schema, parse
from ..measure import ledger


class Cost(Schema):
    """What an answer cost."""

    nfe: Amount = Field(description="forward passes; of a likelihood, masks that were evaluated")
    positions: Amount = Field(description="computed, averaged over the layers")
    wall: float = Field(description="seconds since the answer before")
    tokens: Amount | None = Field(None, description="before the first end of text; a likelihood has none")


class Answer(Schema):
    """One answer in the file."""

    key: str = Field(description="names the request")
    task: str
    answer: str | Annotated[tuple[float, bool], Field(strict=False)] = Field(
        description="of the model", title="a text, or [log likelihood, whether greedy decoding gives it]"
    )
    cost: Cost


class Memory:
    """Answers by request. With a file, each is on the disk before the next is waited for.

    Args:
        path: JSON lines; None: nothing outlives the process.
        environment: what an answer depends on beside its request; answers of another one do not count, but for
            its ``threads``.
    """

    def __init__(self, path: Path | None, environment: Mapping[str, Any]) -> None:
        self.path = path
        self.environment = dict(environment)
        self.run = hash_of({name: value for name, value in self.environment.items() if name != "threads"})
        self.answers: dict[str, dict[str, Any]] = {}
        self.costs: dict[str, list[dict[str, Any]]] = {}
        self.known = False
        self.last = 0.0
        for line in ledger.read(path) if path is not None else ():
            if line.value.get("kind") not in ("run", "answer"):
                raise RequestError(f"{line.where} is not a line of `unmask eval`: expected kind run or answer")
            if line.value.get("run") == self.run:
                self.known = True
                if line.value["kind"] == "answer":
                    self.answers[parse(Answer, line.value, line.where).key] = line.value

    def start(self) -> None:
        """The clock of the next answer starts now."""
        self.last = time.perf_counter()

    def recall(self, task: str, key: str) -> Any:
        """The answer to a request, or None; what it cost counts for the task."""
        row = self.answers.get(key)
        if row is None:
            return None
        self.costs.setdefault(task, []).append(row["cost"])
        return row["answer"]

    def keep(self, task: str, key: str, answer: Any, cost: Mapping[str, float]) -> None:
        """Add an answer. ``wall``, the seconds since the answer before, is added to its cost: their sum is the time
        that all of them took, whatever ran side by side.
        """
        now = time.perf_counter()
        cost = {**cost, "wall": now - self.last}
        self.last = now
        self.costs.setdefault(task, []).append(cost)
        row = {"kind": "answer", "run": self.run, "key": key, "task": task, "answer": answer, "cost": cost}
        self.answers[key] = row
        if self.path is None:
            return
        if not self.known:
            ledger.append(self.path, {"kind": "run", "run": self.run, **self.environment})
            self.known = True
        ledger.append(self.path, row)

    def speed(self) -> dict[str, dict[str, float]]:
        """What each task cost: ``requests``, means per request of ``nfe``, ``positions`` and ``tokens`` (before the
        first end of text), ``tpf``, ``seconds`` of decoding and ``tokens_per_second``. Of likelihoods, nfe counts the
        masks that were evaluated, and there are no tokens.
        """
        return {task: _summary(costs) for task, costs in self.costs.items()}


def _summary(costs: list[dict[str, Any]]) -> dict[str, float]:
    n = len(costs)
    nfe, positions, wall = (sum(cost[name] for cost in costs) for name in ("nfe", "positions", "wall"))
    found: dict[str, float] = {"requests": n, "nfe": nfe / n, "positions": positions / n, "seconds": wall}
    if "tokens" in costs[0]:
        tokens = sum(cost["tokens"] for cost in costs)
        found |= {"tokens": tokens / n, "tpf": tokens / nfe, "tokens_per_second": tokens / wall}
    return found


def hash_of(value: Any) -> str:
    """A short name of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
