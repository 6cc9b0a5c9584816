"""``python -m unmask.evaluation``: the command ``lm_eval`` with the model ``unmask`` in its registry."""

from __future__ import annotations

import os

from ..core.heap import keep_freed
from ..core.waiting import bound_waiting
from . import register

if __name__ == "__main__":
    keep_freed()
    bound_waiting(os.environ)
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
