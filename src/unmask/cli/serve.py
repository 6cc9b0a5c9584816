"""``unmask serve``."""

from __future__ import annotations

import os
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import RequestError, UnmaskError
from ..server.settings import Settings
from .options import Loading, declared, takes

_Key = Annotated[list[str] | None, typer.Option("--api-key", help="Key that clients must send; can be several.")]
_KeyFile = Annotated[str | None, typer.Option("--api-key-file", help="File with a key in each line.")]
_VARIABLE = "UNMASK_API_KEY"
_OWN = {"model": "served_name"}  # --model is the folder or hub id here


def _options() -> type:
    """A dataclass of options, one for each field of :class:`~unmask.server.settings.Settings`."""
    own = [f for f in fields(Settings) if f.metadata]
    made: list[Any] = [(_OWN.get(f.name, f.name), declared(f, _OWN.get(f.name, f.name)), f.default) for f in own]
    more = [("api_key", _Key, None), ("api_key_file", _KeyFile, None)]
    return make_dataclass("Serving", [*made, *more], frozen=True)


Serving = _options()


@takes()
def serve(
    *,
    where: Loading,
    serving: Serving,  # type: ignore[valid-type]
) -> None:
    """Serve a model over HTTP with OpenAI's endpoints, until SIGTERM or Ctrl-C."""
    given = {name: getattr(serving, _OWN.get(name, name)) for name in (f.name for f in fields(Settings) if f.metadata)}
    keys = _keys(vars(serving)["api_key"], vars(serving)["api_key_file"])
    settings = Settings(**{"model": where.model, **{k: v for k, v in given.items() if v is not None}}, keys=keys)
    from .. import registry
    from ..server import app

    try:
        from ..server import logs, run
    except ModuleNotFoundError as error:
        raise UnmaskError(f"unmask serve needs {error.name}: pip install 'unmask[serve]'") from None
    for spec, known in ((settings.policy, registry.policy), (settings.cache, registry.cache)):
        if spec is not None:
            known(spec)
    with run.listen(settings) as listener:  # before the model is read, which may take minutes
        logs.configure(settings.log_format)
        run.run(app(where.load(), settings), settings, listener)


def _keys(given: list[str] | None, file: str | None) -> tuple[str, ...]:
    """The keys of options, file and environment.

    Raises:
        RequestError: a file that cannot be read or holds none, a key that cannot be sent.
    """
    keys = list(given or [])
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"--api-key-file: cannot read {file}: {getattr(error, 'strerror', error)}") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise RequestError(f"--api-key-file: {file} holds no key; expected one a line")
        keys += found
    if not keys and os.environ.get(_VARIABLE):
        keys = [os.environ[_VARIABLE]]
    odd = next((key for key in keys if not (key.isascii() and key.isprintable() and key.strip() == key and key)), None)
    if odd is not None:
        raise RequestError("--api-key: a key must be printable ASCII without spaces around it, and not empty")
    return tuple(keys)
