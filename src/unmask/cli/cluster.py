"""Batches on a Ray cluster: every worker has a model and an engine of its own; the lines are those of one process."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer

from ..core.errors import RequestError, UnmaskError
from ..engine.request import Request
from .options import Decoding, Loading

if TYPE_CHECKING:
    from ..results import Result
    from .decoding import Job

_STORE = 200 << 20  # bytes of Ray's store of objects, where this process starts Ray: a batch is small
_REACH = 10.0  # seconds in which a cluster must take a connection
_SHARE = 4  # tasks that each worker gets at least, where there is enough to do
_NOT_WITH = ("trace", "picture", "watch")  # what looks into the engine, which is elsewhere


def check_options(options: Decoding, where: Loading) -> None:
    """Refuse what cannot be spread over a cluster.

    Raises:
        UnmaskError: no batch, an option that needs the engine in this process, a device by number, no Ray.
    """
    if options.ray is None:
        if options.ray_address is not None:
            raise RequestError("--ray-address needs --ray N, the number of workers")
        return
    if options.batch is None:
        raise RequestError("--ray needs --batch: it spreads the lines of a file over workers")
    for name in _NOT_WITH:
        if getattr(options, name):
            raise RequestError(f"--ray and --{name} do not go together: the forward passes are made elsewhere")
    if ":" in where.device:
        raise RequestError(f"--ray chooses the device of each worker; expected --device cuda, got {where.device}")
    check_installed()


def check_installed() -> None:
    """Refuse where there is no Ray.

    Raises:
        UnmaskError: what is missing, and how to install it.
    """
    if find_spec("ray") is None:
        raise UnmaskError("--ray needs ray, which is not installed: pip install 'unmask[ray]'")


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, started on this machine for as long as the block lasts, or the cluster at an address.

    Raises:
        UnmaskError: Ray does not start.
        RequestError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    _check_reached(address)
    own: dict[str, Any] = {"address": "local", "object_store_memory": _STORE, "include_dashboard": False}
    try:
        ray.init(**(own if address is None else {"address": address}), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise UnmaskError(f"Ray does not start: {_first(error)}") from None
        raise RequestError(f"--ray-address {address}: no Ray cluster answers there ({_first(error)})") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def aside() -> Iterator[None]:
    """Libraries in C tell standard error nothing, Ray's least of all; what Python writes there goes on to it."""
    sys.stderr.flush()
    before, kept, nothing = sys.stderr, os.dup(2), os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(kept, "w", buffering=1, encoding=before.encoding, errors=before.errors, closefd=False) as error:
        os.dup2(nothing, 2)
        sys.stderr = error
        try:
            with redirect_stdout(error):  # nor is what Ray prints a result
                yield
        finally:
            sys.stderr = before
            os.dup2(kept, 2)
    os.close(kept)
    os.close(nothing)


def _check_reached(address: str | None) -> None:
    """Refuse an address at which nobody listens; Ray would try for many minutes.

    Raises:
        RequestError: names it.
    """
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), _REACH).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"--ray-address {address}: no Ray cluster answers there ({why})") from None


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _packed(at: int, request: Request) -> bytes:
    """A request on its way to a worker, with a number as its id."""
    return pickle.dumps(replace(request.bare(), id=at))


class Worker:
    """What Ray runs on each place of the cluster: loads the model once, decodes blocks of requests."""

    def __init__(self, where: Loading, batch_size: int, memory: int | None) -> None:
        self.lm, self.batch_size, self.memory = where.load(), batch_size, memory

    def __call__(self, block: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """Results in the order of the requests, each as soon as it and those before it are there."""
        from ..engine.outcome import Outcome

        sent: list[Request] = [pickle.loads(bytes(one)) for one in block["request"]]
        engine, ended = self.lm.engine(self.batch_size, self.memory), dict[int, bytes]()
        for one in sent:
            policy, cache = self.lm.setting(one.policy, one.cache)
            engine.add(replace(one, policy=policy, cache=cache))
        waiting = [one.id for one in sent]
        while engine.busy:
            for event in engine.step():
                if isinstance(event, Outcome):
                    ended[event.request.id] = pickle.dumps(self.lm.result(event))
            while waiting and waiting[0] in ended:
                at = waiting.pop(0)
                yield {"at": [at], "result": [ended.pop(at)]}


def decoded(jobs: Sequence[Job], where: Loading, options: Decoding) -> Generator[tuple[Job, Result], None, None]:
    """The jobs with their results, in their order, decoded by ``options.ray`` workers.

    A worker that dies is started again, and what it had not handed over is decoded once more.

    Raises:
        RequestError: no such cluster, or one that is too small.
        typer.Exit: with code 1 where the cluster fails.
    """
    assert options.ray is not None
    memory = None if options.memory is None else max(1, int(options.memory * 2**20))
    with aside(), connected(options.ray_address):
        import ray
        import ray.data
        from ray.data.exceptions import SystemException
        from ray.exceptions import RayError

        room, place, has = capacity(ray.cluster_resources(), where)
        check_room("--ray", options.ray, room, has)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.target_max_block_size = 1  # each result is handed over by itself
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        rows = [{"request": _packed(at, job.request)} for at, job in enumerate(jobs)]
        size = _block(len(jobs), options)
        blocks = [rows[at : at + size] for at in range(0, len(rows), size)]
        spread = ray.data.from_arrow([_table(block) for block in blocks])
        pool = ray.data.ActorPoolStrategy(size=options.ray, max_tasks_in_flight_per_actor=2)
        done = spread.map_batches(
            Worker,
            batch_size=None,
            compute=pool,
            fn_constructor_args=(where, options.batch_size, memory),
            **place,
        )
        try:
            for row in done.iter_rows():
                yield jobs[int(row["at"])], pickle.loads(bytes(row["result"]))
        except (RayError, SystemException) as error:
            print(f"error: the cluster has failed: {_first(error)}", file=sys.stderr)
            raise typer.Exit(1) from None


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import pyarrow

    return pyarrow.table({"request": pyarrow.array([row["request"] for row in rows], pyarrow.binary())})


def _block(count: int, options: Decoding) -> int:
    """Requests of a task: so many that a batch stays full, so few that every worker gets some, several times."""
    assert options.ray is not None
    each = -(-count // options.ray)
    return max(1, min(each, max(options.batch_size, -(-each // _SHARE)), _SHARE * options.batch_size))


def capacity(there: Mapping[str, float], where: Loading) -> tuple[int, dict[str, float], str]:
    """How many workers a cluster has room for, what each takes of it, and what limits them, in words."""
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    if where.device == "cuda" or (where.device == "auto" and gpus):
        return gpus, {"num_gpus": 1, "num_cpus": 0}, f"{gpus} GPUs"
    each = max(1, where.threads)
    return cpus // each, {"num_cpus": each}, f"{cpus} CPUs" + (f", of which each takes {each}" if each > 1 else "")


def check_room(option: str, count: int, room: int, has: str) -> None:
    """Refuse more workers than there is room for; Ray would wait for ever.

    Raises:
        RequestError: names the option.
    """
    if count > room:
        raise RequestError(f"{option} {count}: the cluster has {has}; give fewer")


def elsewhere(where: Loading) -> Loading:
    """How this process loads the model to check the lines: the devices belong to the workers."""
    return replace(where, device="cpu", compile=False, cuda_graphs="off")
