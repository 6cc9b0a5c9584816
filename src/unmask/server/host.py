"""Where the engine of a server runs: in a thread of it, or in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from ..api import Model
from ..core.errors import UnmaskError
from ..processor import Processor
from .decoder import Decoder
from .settings import Settings
from .wire import Unpacker, packed

_END = 1.0  # seconds in which a process may end by itself
_PIECE = 1 << 20  # bytes read at a time
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of prctl


@dataclass
class Host:
    """An engine that can be reached by a socket.

    Attributes:
        processor: makes its requests.
        line: the server's end of the socket.
        runs: the thread or the process.
    """

    processor: Processor
    line: socket.socket
    runs: threading.Thread | BaseProcess

    def start(self) -> None:
        """Begin to take orders; a process has begun already."""
        if self.runs.ident is None:
            self.runs.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the engine, which has been told of it, for so many seconds at most."""
        self.runs.join(seconds)

    def kill(self) -> None:
        """End it at once, if it is a process."""
        if isinstance(self.runs, BaseProcess):
            self.runs.kill()

    @property
    def alive(self) -> bool:
        """Whether it takes orders."""
        return self.runs.is_alive()

    @property
    def pid(self) -> int | None:
        """The process of the engine; None: it is this one."""
        return self.runs.pid if isinstance(self.runs, BaseProcess) else None


def in_thread(lm: Model, settings: Settings) -> Host:
    """An engine in a thread of this process, for applications that others run."""
    line, own = socket.socketpair()
    return Host(lm, line, threading.Thread(target=Decoder(lm, settings, own).run, name="engine", daemon=True))


@contextmanager
def in_process(load: Callable[[], Model], settings: Settings, foreign: Iterable[socket.socket] = ()) -> Iterator[Host]:
    """An engine in a process of its own, until the end of the block. There it has the interpreter for itself:
    what HTTP takes does not hold it up.

    Args:
        load: loads the model, in that process.
        settings: batch size and memory.
        foreign: sockets of this process that the other one shall not keep open.

    Raises:
        Exception: what ``load`` raises.
        ChildProcessError: the process has ended before the model was loaded.
    """
    line, own = socket.socketpair()
    arguments = (load, settings, own, (line, *foreign), os.getpid())
    process = multiprocessing.get_context("fork").Process(target=_decode, args=arguments, name="engine")
    process.start()
    own.close()
    try:
        told = _first(line)
        if told is None:
            process.join(_END)
            raise ChildProcessError(f"the process that loads the model has {ending(process)}")
        if isinstance(told, Exception):
            raise told
        yield Host(told, line, process)
    finally:
        line.close()
        try:
            process.join(_END)
        finally:
            process.kill()
            process.join()


def ending(process: threading.Thread | BaseProcess) -> str:
    """How it ended, in words."""
    code = process.exitcode if isinstance(process, BaseProcess) else None
    return "ended" if not code else f"ended with {code}" if code > 0 else f"been killed ({signal.Signals(-code).name})"


def _first(line: socket.socket) -> Processor | Exception | None:
    """What comes first, and alone; None: nothing does."""
    unpacker = Unpacker()
    while data := line.recv(_PIECE):
        for told in unpacker.feed(data):
            return told  # type: ignore[no-any-return]
    return None


def _decode(
    load: Callable[[], Model], settings: Settings, line: socket.socket, foreign: Iterable[socket.socket], parent: int
) -> None:
    """What the engine's process does. Once it has a model, signals are the server's: they may be sent to both."""
    _end_with(parent)
    for one in foreign:
        one.close()
    try:
        lm = load()
        told = packed(Processor(lm.spec, lm.text, lm.recommended))
    except KeyboardInterrupt:
        return
    except Exception as error:
        if not isinstance(error, (UnmaskError, OSError, MemoryError)):
            traceback.print_exc()
        lm, told = None, _error(error)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        line.sendall(told)
    except ConnectionError:
        return
    if lm is None:
        return
    gc.freeze()  # what is there now stays: collections need not look at it
    Decoder(lm, settings, line).run()


def _end_with(parent: int) -> None:
    """Have Linux end this process when its parent has ended, however that came."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _error(error: Exception) -> bytes:
    """An error as bytes; one that does not survive that as one that does."""
    told = packed(RuntimeError(f"{type(error).__name__}: {error}"))
    with suppress(Exception):
        [found] = Unpacker().feed(packed(error))
        if type(found) is type(error) and str(found) == str(error):
            return packed(error)
    return told


@contextmanager
def hosted(load: Callable[[], Model], settings: Settings, listener: socket.socket) -> Iterator[Host]:
    """An engine for a server of this process, which listens: in a process, where the system can fork safely."""
    if sys.platform == "linux":
        with in_process(load, settings, [listener]) as host:
            yield host
    else:
        yield in_thread(load(), settings)
