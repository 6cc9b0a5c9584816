"""unmask: fast decoding of masked diffusion language models.

import unmask
lm = unmask.load()
print(lm.generate("Amy has 3 apples. She buys 4 more. How many apples does Amy have?")[0].text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Model, load
    from .core.errors import ModelError, RequestError, SpecError, UnmaskError
    from .engine.loop import Commit, Step
    from .engine.outcome import Outcome
    from .engine.request import Request, SamplingParams
    from .engine.scheduler import Engine
    from .profiles import profile
    from .results import Result, Span, Stats
    from .speculative.model import CausalLM, Continuation, load_causal

__version__ = "0.1.0"
__all__ = [
    "Candidate",
    "CausalLM",
    "Commit",
    "Continuation",
    "Engine",
    "Model",
    "ModelError",
    "Outcome",
    "Request",
    "RequestError",
    "Result",
    "SamplingParams",
    "Span",
    "SpecError",
    "Stats",
    "Step",
    "UnmaskError",
    "load",
    "load_causal",
    "profile",
    "rerank",
]
_HOME = {
    **dict.fromkeys(("Commit", "Step"), "engine.loop"),
    **dict.fromkeys(("Request", "SamplingParams"), "engine.request"),
    "Engine": "engine.scheduler",
    "Outcome": "engine.outcome",
    **dict.fromkeys(("Result", "Span", "Stats"), "results"),
    "profile": "profiles",
    **dict.fromkeys(("Candidate", "rerank"), "reranking"),
    **dict.fromkeys(("CausalLM", "Continuation", "load_causal"), "speculative.model"),
    **{name: "core.errors" for name in __all__ if name.endswith("Error")},
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``unmask --help`` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME.get(name, 'api')}", __name__), name)
    globals()[name] = value
    return value
