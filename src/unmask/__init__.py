"""unmask: fast decoding of masked diffusion language models.

import unmask
lm = unmask.load()
print(lm.generate("Amy has 3 apples. She buys 4 more. How many apples does Amy have?")[0].text)
"""

from .api import Model, Result, Stats, load
from .core.errors import ModelError, RequestError, SpecError, UnmaskError
from .engine.loop import Commit, Step

__version__ = "0.1.0"
__all__ = [
    "Commit",
    "Model",
    "ModelError",
    "RequestError",
    "Result",
    "SpecError",
    "Stats",
    "Step",
    "UnmaskError",
    "load",
]
