"""An HTTP server with OpenAI's endpoints: requests share forward passes, and texts are streamed as they are filled in.

Needs the packages of the extra ``serve``; importing this module alone imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import UnmaskError
from .settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..api import Model

__all__ = ["Settings", "app"]


def app(model: Model | None = None, settings: Settings | None = None) -> FastAPI:
    """The ASGI application that serves a model; its engine runs from the application's startup to its shutdown, in a
    thread. The one of ``unmask serve`` has a process of its own.

    Args:
        model: what :func:`unmask.load` returns; None: the bundled model.
        settings: limits, defaults and keys.

    Raises:
        UnmaskError: a package of the extra ``serve`` is missing.
        SpecError, ModelError: the default policy or cache cannot be used.
    """
    from .. import api

    try:
        from .application import build
        from .host import in_thread
    except ModuleNotFoundError as error:
        raise UnmaskError(f"the server needs {error.name}: pip install 'unmask[serve]'") from None
    settings = Settings() if settings is None else settings
    return build(in_thread(api.load() if model is None else model, settings), settings)
