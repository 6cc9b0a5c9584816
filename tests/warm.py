"""``unmask`` in processes of its own without the seconds that importing takes: a process that has imported it forks.

``python warm.py serve SOCKET`` waits; ``python warm.py call SOCKET ARGS...`` is what ``unmask ARGS...`` would be: in
the caller's folder and environment, with its standard streams, it gets the caller's signals and is killed with it.
With ``UNMASK_TERMINAL`` in the environment standard input is its terminal.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

COLD = [sys.executable, "-c", "from unmask.cli import main; main()"]
_PASSED = (signal.SIGINT, signal.SIGTERM)  # from the caller to the command
_STREAMS = (("stdin", "r", "strict"), ("stdout", "w", "strict"), ("stderr", "w", "backslashreplace"))
Shell = Callable[[str, Path], "subprocess.CompletedProcess[str]"]


def serve(path: str) -> None:
    """Fork for every call until standard input ends."""
    import select

    import unmask.api
    import unmask.cli.bench
    import unmask.server.run  # noqa: F401

    def reap(*_: Any) -> None:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    signal.signal(signal.SIGCHLD, reap)
    for number in _PASSED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                keep(connection)
            connection.close()


def keep(connection: socket.socket) -> None:
    """Start one command, tell its process id and, in the end, how it ended; end it if the caller is gone."""
    import select

    data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    call = json.loads(data)
    child = os.fork()
    if child == 0:
        connection.close()
        run(call, streams)
    for stream in {*streams, 0, 1, 2}:
        os.close(stream)
    connection.sendall(f"{child}\n".encode())
    if hasattr(os, "pidfd_open"):  # not on macOS
        ended = os.pidfd_open(child)
        if connection in select.select([connection, ended], [], [])[0]:
            os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def run(call: dict[str, Any], streams: list[int]) -> None:
    """Run a command in this process, and end."""
    code = 1
    try:
        for at in range(3):
            os.close(at)
        for at, stream in zip(call["streams"], streams, strict=True):
            os.dup2(stream, at)
            os.close(stream)
        for at, (name, mode, errors) in enumerate(_STREAMS):
            file = None
            if at in call["streams"]:
                file = open(at, mode, 1 if at == 2 else -1, "utf-8", errors, closefd=False)  # noqa: SIM115
            setattr(sys, name, file)
            setattr(sys, f"__{name}__", file)
        os.chdir(call["folder"])
        os.environ.clear()
        os.environ.update(call["environment"])
        if os.environ.pop("UNMASK_TERMINAL", None):
            import fcntl
            import termios

            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        sys.argv = ["unmask", *call["arguments"]]
        from unmask.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for out in (sys.stdout, sys.stderr):
            with suppress(OSError):
                if out is not None:
                    out.flush()
        os._exit(code)


def call(path: str, arguments: list[str]) -> int:
    """Have a command run; its exit code."""
    child, early = 0, list[int]()

    def passed(number: int, _: Any) -> None:
        if not child:
            early.append(number)
        else:
            with suppress(ProcessLookupError):
                os.kill(child, number)

    for number in _PASSED:
        signal.signal(number, passed)
    streams = [at for at in range(3) if _is_open(at)]  # before the connection takes the place of one
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        what = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments, "streams": streams}
        socket.send_fds(connection, [json.dumps(what).encode()], streams)
        with connection.makefile() as told:
            child = int(told.readline())
            for number in early:
                passed(number, None)
            code = int(told.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


def _is_open(stream: int) -> bool:
    try:
        os.fstat(stream)
    except OSError:
        return False
    return True


class Warm:
    """A process that forks for commands, from the first that is wanted until :meth:`end`."""

    def __init__(self) -> None:
        self._held, self._socket = ExitStack(), ""

    def command(self) -> list[str]:
        """What stands for ``unmask`` in a list of arguments."""
        if not hasattr(os, "fork"):
            return COLD
        if not self._socket:
            self._socket = str(Path(self._held.enter_context(tempfile.TemporaryDirectory())) / "s")
            command = [sys.executable, __file__, "serve", self._socket]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            server = self._held.enter_context(process)
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            self._held.callback(server.stdin.close)
        return [sys.executable, "-S", "-E", __file__, "call", self._socket]

    def end(self) -> None:
        """Stop it."""
        self._held.close()
        self._socket = ""


WARM = Warm()


def command() -> list[str]:
    """What stands for ``unmask`` in a list of arguments, in this test process."""
    return WARM.command()


def shell() -> Shell:
    """A function that runs a script with bash in a folder; ``unmask`` in it is the command line."""
    function = f'unmask() {{ {shlex.join(command())} "$@"; }}\nset -eu\n'

    def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        whole = ["bash", "-c", function + script]
        return subprocess.run(whole, cwd=folder, capture_output=True, text=True, check=False)

    return run


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[2], sys.argv[3:]))
