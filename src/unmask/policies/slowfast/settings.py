"""The parameters of SlowFast Sampling and its presets."""

from __future__ import annotations

from dataclasses import Field, dataclass
from typing import Any

from ...core.config import param
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
    """All of them; what is not given is filled in from the preset and the signal."""

    preset: str = param("paper", "the defaults of the others", choices=tuple(PRESETS))
    tau_min: float = param(None, "a position this confident may end the span (paper .1, reference .3)", ge=0, le=2)
    tau_high: float = param(
        None, "inside the span, commit what is this confident (paper .85, reference .9)", ge=0, le=2
    )
    tau_slow: float = param(
        None,
        "the same in the slow phase, where that commits by threshold (reference_dream .8, else tau_high)",
        ge=0,
        le=2,
    )
    k_max: int = param(None, "most exploratory forwards of a cycle (paper 8, reference 6)", ge=1)
    window: int = param(
        2, "candidates that the stability test looks at; 1: one exploratory forward a cycle, untested", ge=1, le=64
    )
    sigma2: float = param(
        None,
        "the signal is stable below this; its unit is the signal's "
        "(endpoint 1.0 positions^2, entropy .001 nats^2, kl .01 nats)",
        gt=0,
    )
    k_slow: int = param(1, "positions committed by an exploratory forward", ge=1)
    k_fast: int = param(1, "positions committed when none in the span reaches tau_high", ge=1)
    block_length: int | None = param(None, "positions per block; none: the whole response is one block", ge=1)
    suffix: str = param(
        None,
        "beyond the span: leave the input | keep cached keys and values | recompute (paper cached, reference truncate)",
        choices=("truncate", "cached", "full"),
    )
    signal: str = param(
        "endpoint",
        "what must be stable: variance of the endpoint or of the mean entropy, or KL "
        "divergence of the confidences from the forward before",
        choices=tuple(BOUNDS),
    )
    force_after: int | None = param(None, "leave the slow phase after this many forwards, without a test", ge=1)
    slow_commit: str = param(
        None,
        "slow phase commits the k_slow best, or like the fast phase (paper top, reference threshold)",
        choices=("top", "threshold"),
    )
    leave: str = param(
        None,
        "slow phase ends when stable, or always takes k_max forwards (paper stable, reference k_max)",
        choices=("stable", "k_max"),
    )
    endpoint: str = param(
        None,
        "the span ends at the mean of the candidates, or at the last where stable, else at their mean, rounded down or "
        "to the nearest (paper mean, reference last, reference_dream last_or_rounded)",
        choices=("mean", "last", "last_or_rounded"),
    )
    variance: str = param(
        None,
        "stable is a variance over the window below sigma2, or a sample variance up to it over a window that begins as "
        "zeros in each cycle (reference_dream sample)",
        choices=("population", "sample"),
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
