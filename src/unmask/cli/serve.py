"""``unmask serve``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import fields, make_dataclass
from pathlib import Path
from socket import socket
from typing import Annotated, Any

import typer

from ..core.errors import RequestError, UnmaskError
from ..server.settings import Settings
from .cluster import aside, capacity, check_installed, check_room, connected
from .options import Loading, RayAddress, declared, takes

_Key = Annotated[list[str] | None, typer.Option("--api-key", help="Key that clients must send; can be several.")]
_KeyFile = Annotated[str | None, typer.Option("--api-key-file", help="File with a key in each line.")]
_Ray = Annotated[bool, typer.Option("--ray", help="Serve by replicas on a Ray cluster.")]
_Replicas = Annotated[
    str,
    typer.Option(
        metavar="N|auto", help="With --ray: how many replicas; auto: as many as requests and cluster call for."
    ),
]
_VARIABLE = "UNMASK_API_KEY"
_OWN = {"model": "served_name"}  # --model is the folder or hub id here


def _options() -> type:
    """A dataclass of options, one for each field of :class:`~unmask.server.settings.Settings`."""
    own = [f for f in fields(Settings) if f.metadata]
    made: list[Any] = [(_OWN.get(f.name, f.name), declared(f, _OWN.get(f.name, f.name)), f.default) for f in own]
    more: list[Any] = [("api_key", _Key, None), ("api_key_file", _KeyFile, None)]
    more += [("ray", _Ray, False), ("replicas", _Replicas, "auto"), ("ray_address", RayAddress, None)]
    return make_dataclass("Serving", [*made, *more], frozen=True)


Serving = _options()


@takes()
def serve(
    context: typer.Context,
    *,
    where: Loading,
    serving: Serving,  # type: ignore[valid-type]
) -> None:
    """Serve a model over HTTP with OpenAI's endpoints, until SIGTERM or Ctrl-C."""
    given = {name: getattr(serving, _OWN.get(name, name)) for name in (f.name for f in fields(Settings) if f.metadata)}
    keys = _keys(vars(serving)["api_key"], vars(serving)["api_key_file"])
    settings = Settings(**{"model": where.model, **{k: v for k, v in given.items() if v is not None}}, keys=keys)
    ray = _cluster(context, vars(serving), where)
    from .. import registry

    try:
        from ..server import logs, run
    except ModuleNotFoundError as error:
        raise UnmaskError(f"unmask serve needs {error.name}: pip install 'unmask[serve]'") from None
    for spec, known in ((settings.policy, registry.policy), (settings.cache, registry.cache)):
        if spec is not None:
            known(spec)
    with run.listen(settings) as listener:  # before the model is read, which may take minutes
        if ray:
            return _spread(where, settings, listener, vars(serving))
        logs.configure(settings.log_format)
        run.run(where.load, settings, listener)


def _cluster(context: typer.Context, given: Mapping[str, Any], where: Loading) -> bool:
    """Whether replicas serve; their options are checked.

    Raises:
        RequestError: an option that needs --ray, or has a value that cannot be.
        UnmaskError: there is no Ray.
    """
    replicas, device = given["replicas"], where.device
    if not given["ray"]:
        source = context.get_parameter_source("replicas")
        if given["ray_address"] is not None or (source is not None and source.name == "COMMANDLINE"):
            raise RequestError("--replicas and --ray-address need --ray")
        return False
    if replicas != "auto" and not (replicas.isascii() and replicas.isdigit() and 1 <= int(replicas) < 10**6):
        raise RequestError(f"--replicas must be a number of at least 1, or auto; got {replicas:.40}")
    if ":" in device:
        raise RequestError(f"--ray chooses the device of each replica; expected --device cuda, got {device}")
    check_installed()
    return True


def _spread(where: Loading, settings: Settings, listener: socket, given: Mapping[str, Any]) -> None:
    """Serve by replicas."""
    from ..server import logs, replicas

    with aside(), open(os.devnull, "w") as nothing, redirect_stdout(nothing), connected(given["ray_address"]):
        import ray

        logs.configure(settings.log_format)
        room, takes_, has = capacity(ray.cluster_resources(), where)
        least = 1 if given["replicas"] == "auto" else int(given["replicas"])
        check_room("--replicas", least, room, has)
        most = room if given["replicas"] == "auto" else least
        replicas.run(where.load, settings, listener, replicas.Replicas(least, most, takes_))


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
