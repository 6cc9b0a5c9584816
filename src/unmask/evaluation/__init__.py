"""Evaluation with lm-evaluation-harness: the model ``unmask`` for its registry, and ``unmask eval`` over it."""

from __future__ import annotations

from ..core.errors import RequestError


def register() -> None:
    """Make ``unmask`` known to the harness, which looks for models in its own table and knows no entry points.

    Raises:
        RequestError: lm-eval is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401  (it fills the table when it finds it empty, and only then)
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise RequestError(f'evaluation needs lm-eval: pip install "unmask[eval]" ({error})') from None
    if "unmask" not in model_registry:
        model_registry.register("unmask", target="unmask.evaluation.model:UnmaskLM")
