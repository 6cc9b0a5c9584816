"""``python -m unmask.evaluation``: the command ``lm_eval`` with the model ``unmask`` in its registry."""

from __future__ import annotations

from . import register

if __name__ == "__main__":
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
