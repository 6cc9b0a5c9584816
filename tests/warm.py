"""``unmask`` for shell scripts of tests without the seconds that importing takes: a process that has imported it forks.

``python warm.py serve SOCKET`` waits; ``python warm.py call SOCKET ARGS...`` is what ``unmask ARGS...`` would be, in
the caller's folder and environment and with its standard streams.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PLAIN = 'unmask() { "$UNMASK_PYTHON" -c "from unmask.cli import main; main()" "$@"; }\nset -eu\n'
_WARM = 'unmask() { "$UNMASK_PYTHON" -S -E "$UNMASK_WARM" call "$UNMASK_SOCKET" "$@"; }\nset -eu\n'
Shell = Callable[[str, Path], "subprocess.CompletedProcess[str]"]


def serve(path: str) -> None:
    """Fork for every call until standard input ends."""
    import select
    import signal

    import unmask.api
    import unmask.cli.bench  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Run one command in this process, tell its exit code, and end."""
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        call = json.loads(data)
        for at, stream in enumerate(streams):
            os.dup2(stream, at)
        os.chdir(call["folder"])
        os.environ.clear()
        os.environ.update(call["environment"])
        sys.argv = ["unmask", *call["arguments"]]
        from unmask.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        connection.sendall(bytes([code]))
        os._exit(code)


def call(path: str, arguments: list[str]) -> int:
    """Have a command run; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        what = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments}
        socket.send_fds(connection, [json.dumps(what).encode()], [0, 1, 2])
        return connection.recv(1)[0]


@contextmanager
def shell() -> Iterator[Shell]:
    """A function that runs a script with bash in a folder; ``unmask`` in it is the command line."""
    environment = os.environ | {"UNMASK_PYTHON": sys.executable, "UNMASK_WARM": __file__}

    def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    if not hasattr(os, "fork"):
        yield lambda script, folder: run(_PLAIN + script, folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        environment["UNMASK_SOCKET"] = str(Path(folder) / "s")
        command = [sys.executable, __file__, "serve", environment["UNMASK_SOCKET"]]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield lambda script, folder: run(_WARM + script, folder)
            server.stdin.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[2], sys.argv[3:]))
