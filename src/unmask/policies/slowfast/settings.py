"""The parameters of SlowFast Sampling and its presets."""

from __future__ import annotations

from dataclasses import Field, dataclass
from typing import Any

from ...core.config import blocks, param
from ...core.policy import Policy

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "tau_min": 0.1,
        "tau_high": 0.85,
        "k_max": 8,
        "suffix": "cached",
        "slow_commit": "top",
        "leave": "stable",
        "endpoint": "mean",
        "variance": "population",
    },
    "reference": {
        "tau_min": 0.3,
        "tau_high": 0.9,
        "k_max": 6,
        "suffix": "truncate",
        "slow_commit": "threshold",
        "leave": "k_max",
        "endpoint": "last",
        "variance": "population",
    },
    "reference_dream": {
        "tau_min": 0.1,
        "tau_slow": 0.8,
        "tau_high": 0.9,
        "k_max": 6,
        "suffix": "truncate",
        "slow_commit": "threshold",
        "leave": "k_max",
        "endpoint": "last_or_rounded",
        "variance": "sample",
    },
}
BOUNDS = {"endpoint": 1.0, "entropy": 1e-3, "kl": 1e-2}


@dataclass(frozen=True)
class Settings(Policy):
    """What is not given is filled in from the preset and the signal."""

    preset: str = param("paper", "where the parameters that are not given come from", choices=tuple(PRESETS))
    tau_min: float = param(None, "confidence from which a position may end the span", ge=0, le=2)
    tau_high: float = param(None, "confidence from which positions of the span are committed", ge=0, le=2)
    tau_slow: float = param(
        None, "the same in the slow phase, with slow_commit=threshold; else tau_high", ge=0, le=2, hidden=True
    )
    k_max: int = param(None, "most exploratory forward passes of a cycle", ge=1)
    window: int = param(
        2, "candidates that must agree; 1: one exploratory forward pass per cycle, without a test", ge=1, le=64
    )
    sigma2: float = param(
        None,
        "the span is stable below this variance of the candidates, in positions^2 (of another signal: entropy .001 "
        "nats^2, kl .01 nats)",
        gt=0,
    )
    k_slow: int = param(1, "positions committed by an exploratory forward pass", ge=1, hidden=True)
    k_fast: int = param(1, "positions committed when none of the span reaches tau_high", ge=1, hidden=True)
    block_length: int | None = blocks(None)
    suffix: str = param(
        None,
        "positions beyond the span leave the input | stay as cached keys and values | are recomputed",
        choices=("truncate", "cached", "full"),
    )
    signal: str = param(
        "endpoint",
        "what must be stable: variance of the span's end | of the mean entropy | KL divergence of the confidences from "
        "those of the forward pass before",
        choices=tuple(BOUNDS),
        hidden=True,
    )
    force_after: int | None = param(
        None, "leave the slow phase after this many forward passes, without a test", ge=1, hidden=True
    )
    slow_commit: str = param(
        None,
        "the slow phase commits the k_slow most confident positions | those above tau_slow, as the fast phase does",
        choices=("top", "threshold"),
        hidden=True,
    )
    leave: str = param(
        None,
        "the slow phase ends when stable | after k_max forward passes always",
        choices=("stable", "k_max"),
        hidden=True,
    )
    endpoint: str = param(
        None,
        "the span ends at the mean of the candidates | at the last if stable, else at their mean, rounded down | the "
        "same, rounded to the nearest",
        choices=("mean", "last", "last_or_rounded"),
        hidden=True,
    )
    variance: str = param(
        None,
        "stable is a variance below sigma2 | a sample variance up to sigma2, over a window that begins each cycle as "
        "zeros",
        choices=("population", "sample"),
        hidden=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in self._given().items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)

    @property
    def from_zeros(self) -> bool:
        """Whether a cycle's candidates begin as zeros that count, as in the authors' code for Dream."""
        return self.variance == "sample" and self.signal == "endpoint"

    def _given(self) -> dict[str, Any]:
        """What the preset, the signal and the other values fill in."""
        preset = PRESETS[self.preset]
        high = preset["tau_high"] if self.tau_high is None else self.tau_high
        return {"tau_slow": high, "sigma2": BOUNDS[self.signal], **preset}

    def _default(self, field: Field[Any]) -> Any:
        return self._given().get(field.name, field.default)
