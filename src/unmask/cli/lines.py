"""Lines that a person types, with history and completion, or that a pipe brings."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import RequestError

_MOST = 1000  # lines of history


def default_history() -> str:
    """Where the history is kept when nothing says where."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return str(Path(state) / "unmask" / "history")


class Lines(ABC):
    """Where messages come from. A line that ends in a backslash goes on in the next."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        return None

    def read(self) -> str:
        """The next message.

        Raises:
            EOFError: there is none.
        """
        parts = [self._line("> ")]
        while parts[-1].endswith("\\"):
            parts[-1] = parts[-1][:-1]
            try:
                parts.append(self._line("… "))
            except EOFError:
                break
        return "\n".join(parts)

    @abstractmethod
    def _line(self, prompt: str) -> str:
        """One line without its end."""


class Piped(Lines):
    """Lines of standard input, which is no terminal."""

    def __init__(self) -> None:
        self.number = 0

    def _line(self, prompt: str) -> str:
        if sys.stdin is None:
            raise RequestError("standard input is closed; expected messages there")
        raw = sys.stdin.buffer.readline()
        self.number += 1
        if not raw:
            raise EOFError
        try:
            return raw.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise RequestError(f"standard input line {self.number}: not UTF-8 text (byte {error.start})") from None


class Terminal(Lines):
    """Lines typed in a terminal; edited, remembered and completed where Python has ``readline``.

    Args:
        history: file of the lines typed before, which gets those typed now; None: nothing is remembered.
        complete: what a line that begins so may go on with, for the tab key.
    """

    def __init__(self, history: str | None, complete: Callable[[str], list[str]]) -> None:
        self.history, self.complete = history, complete
        self.readline: Any = None
        self.before = 0

    def __enter__(self) -> Terminal:
        try:
            import readline
        except ImportError:  # not on Windows
            return self
        self.readline = readline
        readline.set_auto_history(True)
        readline.set_completer_delims(" ")
        readline.set_completer(self._completion)
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        if self.history and Path(self.history).is_file():
            try:
                readline.read_history_file(self.history)
            except OSError as error:
                raise RequestError(f"cannot read the history {self.history}: {error.strerror}") from None
        self.before = readline.get_current_history_length()
        return self

    def __exit__(self, *_: object) -> None:
        if self.readline is None or self.history is None:
            return
        new = self.readline.get_current_history_length() - self.before
        if new <= 0:
            return
        try:
            path = Path(self.history)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # what was asked is nobody else's business
            self.readline.set_history_length(_MOST)
            self.readline.append_history_file(new, self.history)
        except OSError as error:
            print(f"warning: cannot write the history {self.history}: {error.strerror}", file=sys.stderr)

    def _line(self, prompt: str) -> str:
        if sys.stdout is not None and sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)  # standard output has answers alone
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _completion(self, _: str, state: int) -> str | None:
        """What ``readline`` asks for: the state-th completion of the last word."""
        found = self.complete(self.readline.get_line_buffer()[: self.readline.get_endidx()])
        return found[state] if state < len(found) else None
