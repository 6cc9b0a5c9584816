"""How long the threads of one operation wait by spinning before they sleep; without torch, which reads it at import."""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}  # up to a millisecond; GNU's and LLVM's (Intel's) OpenMP
_CHOSEN = (*SPINS, "OMP_WAIT_POLICY")


def bound_waiting(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads spin for a millisecond at most, unless the user has said how they wait.

    For programs, before they import torch: it concerns the whole process and what it starts.
    """
    if not any(environment.get(name) for name in _CHOSEN):
        environment.update(SPINS)
