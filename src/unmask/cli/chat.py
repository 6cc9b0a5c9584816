"""``unmask chat``: a conversation, in a terminal or from a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import RequestError, UnmaskError
from ..engine.request import SamplingParams, wrapped
from . import options as o
from .lines import Lines, Piped, Terminal, default_history

if TYPE_CHECKING:
    from ..api import Model
    from ..results import Result
    from .progress import Display

RECOMMENDED = "recommended"  # in place of a spec: what the model recommends
_SHOWN = 60  # characters of a question in a notice


@dataclass(frozen=True)
class Talking:
    """The options of ``unmask chat`` beside those of the model and of sampling."""

    system: Annotated[str | None, typer.Option(help="A system message in front of the conversation.")] = None
    policy: o.Policy = None
    cache: o.Cache = None
    gen_length: o.GenLength = None
    watch: Annotated[bool, typer.Option(help="Show the canvas fill; only in a terminal.")] = True
    history: Annotated[
        str | None, typer.Option(help="File of the lines typed; - for none; none: in the user's state folder.")
    ] = None


@o.takes(gen_length="Tokens of each answer; none: what the model recommends.")
def chat(*, where: o.Loading, talking: Talking, sampling: o.Sampling) -> None:  # type: ignore[valid-type]
    """Talk to a chat model. Each line of standard input is a message or a /command; /help lists those."""
    given = {name: value for name, value in vars(sampling).items() if value is not None}
    SamplingParams(**given)  # refused before a model is loaded
    _check_specs(talking)
    history, terminal = _file(talking.history), sys.stdin is not None and sys.stdin.isatty()
    lines: Lines = Terminal(history, completions) if terminal else Piped()
    lm = where.load()
    if lm.text is None or not lm.text.chat:
        what = "chat template" if lm.text else "tokenizer.json"
        raise RequestError(f"{where.model} has no {what}; `unmask chat` needs one, `unmask generate` does not")
    session = Session(lm, talking, given, terminal)
    if terminal:
        if not lm.text.use_chat:
            session.notice("this looks like a base model: it may not answer as a chat model does")
        session.notice(f"{where.model or _bundled()}, {session.setting}. /help lists the commands, Ctrl-D leaves.")
    with lines:
        _talk(session, lines)
    if session.refused and not terminal:
        raise typer.Exit(1)


def _check_specs(talking: Talking) -> None:
    """Refuse a policy or cache that does not exist, before a model is loaded."""
    from .. import registry

    for spec, known in ((talking.policy, registry.policy), (talking.cache, registry.cache)):
        if spec is not None:
            known(spec)


def _file(history: str | None) -> str | None:
    if history == "":
        raise RequestError("--history is empty; expected the name of a file, or - for none")
    return None if history == "-" else history or default_history()


def _bundled() -> str:
    from ..api import BUNDLED_NAME

    return BUNDLED_NAME


def _talk(session: Session, lines: Lines) -> None:
    """Read and obey, until /quit or the end of the input."""
    while not session.over:
        try:
            line = lines.read()
            if line.strip():
                session.obey(line)
        except EOFError:
            return session.notice("")
        except KeyboardInterrupt:
            if not session.terminal:
                raise
            session.notice("\nnothing to stop; /quit or Ctrl-D leaves")


class Session:
    """A conversation with a model, and the setting it is decoded with.

    Attributes:
        messages: the conversation so far, the system message included. Questions without a whole answer are not in it.
        policy, cache, gen_length: of the next answer.
        over: whether /quit was given.
        refused: commands and questions that came to nothing.
    """

    def __init__(self, lm: Model, talking: Talking, sampling: Mapping[str, Any], terminal: bool) -> None:
        self.lm, self.sampling, self.terminal = lm, dict(sampling), terminal
        self.policy, self.cache = lm.setting(talking.policy, talking.cache)
        self.gen_length = talking.gen_length or lm.recommended.gen_length
        self.watch = talking.watch and terminal
        self.system = talking.system
        self.messages: list[dict[str, str]] = []
        self.question = ""  # the last one
        self.answered = False  # and whether the conversation ends with its answer
        self.asked, self.refused = 0, 0
        self.over = False

    @property
    def setting(self) -> str:
        """What the next answer is decoded with."""
        return f"policy {self.policy}, cache {self.cache}, {self.gen_length} tokens"

    def notice(self, text: str) -> None:
        """Tell a person something that was not asked for; a pipe is not told."""
        if self.terminal:
            print(text, file=sys.stderr, flush=True)

    def obey(self, line: str) -> None:
        """A message (``//`` stands for a first ``/``) or a command; what is wrong with it is one line."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                self._command(line)
            else:
                self.ask(line.removeprefix("/") if line.startswith("//") else line)
        except UnmaskError as error:
            self.refused += 1
            print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)

    def _command(self, line: str) -> None:
        name, _, value = line[1:].strip().partition(" ")
        if name not in COMMANDS:
            near = get_close_matches(name, COMMANDS, 1)
            way = f"did you mean /{near[0]}?" if near else f"known: {', '.join(f'/{one}' for one in COMMANDS)}"
            raise RequestError(f"unknown command /{name:.40}; {way} A message that begins with / is written //")
        COMMANDS[name].run(self, value.strip())

    # --- asking

    def ask(self, question: str) -> None:
        """Answer a question; it joins the conversation with its answer, unless that was stopped.

        Raises:
            RequestError, ModelError: it cannot be decoded, or failed while it was.
        """
        from .progress import Display

        self.question, self.answered = question, False
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.messages, {"role": "user", "content": question}]
        sampling = dict(self.sampling)
        if "seed" in sampling:
            sampling["seed"] = wrapped(sampling["seed"] + self.asked)
        with self._naming_length(messages):
            result = self._decode(messages, sampling)
        if result is None:
            return self.notice("stopped; the question has left the conversation, /again asks it anew")
        self.asked += 1
        if result.error is not None:
            raise RequestError(result.error)
        print(result.text, flush=True)
        Display().close([result])
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": result.text}]
        self.answered = True
        if result.finish_reason == "length":
            self.notice(f"the answer fills all of {len(result.tokens)} tokens; /length N gives it more")

    @contextmanager
    def _naming_length(self, messages: list[dict[str, str]]) -> Iterator[None]:
        """A conversation that has grown too long is told how to shrink."""
        try:
            yield
        except RequestError as error:
            more = "; /undo, /clear or /length N make room" if self._too_long(messages) else ""
            raise RequestError(error.what + more) from None

    def _too_long(self, messages: list[dict[str, str]]) -> bool:
        assert self.lm.text is not None
        return len(self.lm.text.encode(messages)) + self.gen_length > self.lm.denoiser.spec.context

    def _decode(self, messages: list[dict[str, str]], sampling: dict[str, Any]) -> Result | None:
        """Decode an answer; None: Ctrl-C has stopped it."""
        from dataclasses import replace

        from ..engine.outcome import Outcome

        [request] = self.lm.requests([messages], self.gen_length, self.policy, self.cache, **sampling)
        request = replace(request, id=self.asked + 1)
        engine = self.lm.engine(1)
        engine.add(request)
        outcome = None
        with _stoppable(self.terminal) as stopped, self._display(request) as display:
            while engine.busy:
                events = engine.step()
                done = {e.request.id: self.lm.result(e) for e in events if isinstance(e, Outcome)}
                for event in events:
                    if isinstance(event, Outcome):
                        outcome = event
                    else:
                        display.add(event, done)
                if stopped() and outcome is None:
                    return None
        assert outcome is not None
        return self.lm.result(outcome)

    def _display(self, request: Any) -> Display:
        from .progress import Display, Watch

        return Watch(self.lm, [request], last=False) if self.watch else Display()

    # --- commands

    def set_policy(self, value: str) -> None:
        """``/policy``."""
        if value:
            self.policy = self.lm.setting()[0] if value == RECOMMENDED else self.lm.setting(value)[0]
        self._changed("policy", str(self.policy), value)

    def set_cache(self, value: str) -> None:
        """``/cache``."""
        if value:
            self.cache = self.lm.setting()[1] if value == RECOMMENDED else self.lm.setting(self.policy, value)[1]
        self._changed("cache", str(self.cache), value)

    def set_length(self, value: str) -> None:
        """``/length``."""
        if value:
            if not value.isascii() or not value.isdigit() or not 1 <= int(value[:20]) <= self.lm.denoiser.spec.context:
                context = self.lm.denoiser.spec.context
                raise RequestError(f"/length must be a number of tokens from 1 to {context}, got {value:.40}")
            self.gen_length = int(value)
        self._changed("length", f"{self.gen_length} tokens", value)

    def set_temperature(self, value: str) -> None:
        """``/temperature``."""
        if value:
            try:
                number = float(value)
            except ValueError:
                raise RequestError(f"/temperature must be a number of at least 0, got {value:.40}") from None
            SamplingParams(temperature=number)
            self.sampling["temperature"] = number
        self._changed("temperature", f"{self.sampling.get('temperature', 0.0):g}", value)

    def set_system(self, value: str) -> None:
        """``/system``."""
        if value:
            self.system = None if value == "-" else value
        self._changed("system", self.system or "no system message", value)

    def toggle_watch(self, _: str) -> None:
        """``/watch``."""
        self.watch = not self.watch and self.terminal
        self.notice(f"the canvas is {'shown' if self.watch else 'not shown'} while it fills")

    def undo(self, _: str) -> None:
        """``/undo``."""
        if not self.messages:
            raise RequestError("/undo: there is no answer to undo")
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        self.question = ""
        self.notice(f"undone: {_short(question)}")

    def again(self, _: str) -> None:
        """``/again``."""
        if not self.question:
            raise RequestError("/again: there is no question to ask anew")
        before = self.messages
        if self.answered:
            self.messages = before[:-2]
        try:
            self.ask(self.question)
        finally:
            if len(self.messages) < len(before):  # stopped or failed: the earlier answer stays
                self.messages, self.answered = before, True

    def clear(self, _: str) -> None:
        """``/clear``."""
        self.messages, self.question = [], ""
        self.notice("a new conversation")

    def help(self, _: str) -> None:
        """``/help``."""
        width = max(len(f"/{name} {one.value}") for name, one in COMMANDS.items())
        for name, one in COMMANDS.items():
            print(f"{f'/{name} {one.value}':<{width}}  {one.about}", file=sys.stderr)
        print(
            "A line that ends in \\ goes on in the next. A message that begins with / is written //.\n"
            "Ctrl-C stops an answer, Ctrl-D leaves.",
            file=sys.stderr,
            flush=True,
        )

    def quit(self, _: str) -> None:
        """``/quit``."""
        self.over = True

    def _changed(self, name: str, now: str, value: str) -> None:
        """Tell what holds: where it was asked for always, where it was changed a person only."""
        if value:
            self.notice(f"{name}: {now}")
        else:
            print(f"{name}: {now}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Command:
    """What a /command does, the value it takes and what /help says of it."""

    run: Callable[[Session, str], None]
    value: str
    about: str


COMMANDS = {
    "policy": Command(Session.set_policy, "[SPEC]", f"Policy of the next answers; {RECOMMENDED}: the model's."),
    "cache": Command(Session.set_cache, "[SPEC]", f"Cache of the next answers; {RECOMMENDED}: the model's."),
    "length": Command(Session.set_length, "[N]", "Most tokens of the next answers."),
    "temperature": Command(Session.set_temperature, "[T]", "Sampling temperature; 0 is greedy."),
    "system": Command(Session.set_system, "[TEXT]", "System message; - for none."),
    "watch": Command(Session.toggle_watch, "", "Show the canvas fill, or stop showing it."),
    "again": Command(Session.again, "", "Answer the last question again, with the setting of now."),
    "undo": Command(Session.undo, "", "Take the last question and its answer out of the conversation."),
    "clear": Command(Session.clear, "", "Begin a new conversation."),
    "help": Command(Session.help, "", "Show this."),
    "quit": Command(Session.quit, "", "Leave."),
}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def completions(line: str) -> list[str]:
    """What the last word of a line may become."""
    from .. import registry

    name, blank, word = line.partition(" ")
    if not blank:
        return [f"/{one} " for one in COMMANDS if f"/{one}".startswith(name)] if name.startswith("/") else []
    if name not in ("/policy", "/cache"):
        return []
    return [one for one in (*registry.table(name[1:]), RECOMMENDED) if one.startswith(word)]


@contextmanager
def _stoppable(terminal: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, and the function tells; a second one within the block, or one without a terminal, interrupts."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if not terminal:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
