"""``unmask chat``: a conversation from a pipe, and in a terminal with history, completion and Ctrl-C."""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

import unmask
import warm
from helpers import cli, fine
from llada_folder import write
from unmask.cli.chat import COMMANDS, completions
from unmask.cli.lines import default_history

AMY = "Amy has 3 apples. She buys 4 more, and then 5 more. How many apples does Amy have?"
MIA = "Mia has 7 pens. Mia buys 3 pens. How many pens does Mia have now?"
SUDOKU = "Solve the sudoku:\n0214\n4132\n1420\n0340"
LONG = "\n".join((MIA,) * 40)
PATIENCE = 240  # seconds; a program that is slow is not wrong


@pytest.fixture(scope="module")
def lm():
    return unmask.load()


@pytest.fixture
def talk(lm, monkeypatch):
    """Run ``unmask chat`` with the bundled model on lines; what was asked of the model is in ``talk.asked``."""
    monkeypatch.setitem(unmask.__dict__, "load", lambda *_, **__: lm)
    asked, real = [], lm.requests

    def run(*lines, options=(), raw=None):
        with monkeypatch.context() as patch:
            patch.setattr(lm, "requests", lambda *args, **more: asked.append((args, more)) or real(*args, **more))
            return cli("chat", *options, input="".join(f"{line}\n" for line in lines) if raw is None else raw)

    run.asked = asked
    return run


def said(*contents, system=None):
    """A conversation of a user and an assistant in turn."""
    roles = ("user", "assistant")
    front = [{"role": "system", "content": system}] if system else []
    return front + [{"role": roles[i % 2], "content": one} for i, one in enumerate(contents)]


def conversations(talk):
    return [args[0][0] for args, _ in talk.asked]


def settings(talk):
    return [tuple(map(str, args[1:])) for args, _ in talk.asked]


def errors(result):
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


# --- a conversation


def test_an_answer_is_that_of_generate(talk, lm):
    assert fine(talk(AMY)) == lm.generate(AMY)[0].text + "\n"


def test_the_model_sees_the_whole_conversation(talk, lm):
    out = fine(talk(AMY, MIA, options=("--system", "Be brief.")))
    first, second = conversations(talk)
    assert first == said(AMY, system="Be brief.")
    answer = lm.generate([first])[0].text
    assert second == said(AMY, answer, MIA, system="Be brief.")
    assert out == f"{answer}\n{lm.generate([second])[0].text}\n"


def test_a_message_of_several_lines(talk, lm):
    assert fine(talk(*SUDOKU.replace("\n", "\\\n").split("\n"))) == lm.generate(SUDOKU)[0].text + "\n"
    assert fine(talk("Hi \\")).count("\n") >= 1  # the input ends where a line should follow
    assert [c[-1]["content"] for c in conversations(talk)] == [SUDOKU, "Hi "]


def test_a_message_that_begins_with_a_slash(talk):
    fine(talk("//undo it", "  ", ""))
    assert conversations(talk) == [said("/undo it")]


def test_nothing_said(talk):
    assert fine(talk()) == ""


def test_quit_leaves_the_rest(talk):
    fine(talk("/quit", AMY))
    assert talk.asked == []


# --- commands


def test_policy_cache_and_length(talk, lm):
    fine(talk(AMY, "/policy threshold(tau=0.95)", AMY, "/cache dual", "/length 48", AMY, "/policy recommended", AMY))
    model = tuple(map(str, (lm.recommended.gen_length, *lm.setting())))
    assert settings(talk) == [
        model,
        (model[0], "threshold(tau=0.95)", model[2]),
        ("48", "threshold(tau=0.95)", "dual"),
        ("48", model[1], "dual"),
    ]


def test_options_come_first(talk):
    fine(talk(AMY, options=("-p", "vanilla", "-n", 32)))
    assert settings(talk) == [("32", "vanilla", "none")]


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("/policy nope", "nope"),
        ("/policy threshold(tau=7)", "tau"),
        ("/policy threshold(", "threshold("),
        ("/cache nope", "nope"),
        ("/length 0", "/length"),
        ("/length 1e3", "/length"),
        ("/length 99999999999999999999999", "/length"),
        ("/temperature warm", "/temperature"),
        ("/temperature -1", "temperature"),
        ("/temperature nan", "temperature"),
        ("/undo", "/undo"),
        ("/again", "/again"),
        ("/polcy vanilla", "/policy"),
        ("/", "/help"),
    ],
)
def test_a_bad_command_changes_nothing(talk, command, named):
    result = talk("/policy threshold(tau=0.95)", command, MIA)
    [message] = errors(result)
    assert named in message
    assert settings(talk) == [("256", "threshold(tau=0.95)", str(unmask.load().setting()[1]))]
    assert talk.asked[0][1] == {**talk.asked[0][1], "temperature": 0.0}
    assert result.exit_code == 1  # a pipe is told in the end
    assert result.stdout.count("\n") >= 1


def test_undo(talk, lm):
    fine(talk(AMY, MIA, "/undo", SUDOKU.replace("\n", " "), "/undo", "/undo", MIA))
    contents = [[m["content"] for m in c] for c in conversations(talk)]
    assert [len(c) for c in contents] == [1, 3, 3, 1]
    assert contents[2][:2] == contents[1][:2]
    assert contents[3] == [MIA]


def test_again_takes_the_setting_of_now(talk):
    fine(talk(AMY, MIA, "/policy vanilla", "/again", MIA))
    contents = [[m["content"] for m in c] for c in conversations(talk)]
    assert contents[2] == contents[1]
    assert [one[1] == "vanilla" for one in settings(talk)] == [False, False, True, True]
    assert len(contents[3]) == 5


def test_again_of_the_same_question_twice(talk):
    talk(MIA, MIA, "/length 2048", "/again", "/length 64", "/again", MIA)  # the first /again fails
    assert [len(c) for c in conversations(talk)] == [1, 3, 3, 3, 5]


def test_clear_and_system(talk):
    fine(talk("/system Add.", AMY, "/clear", MIA, "/system -", "/clear", MIA))
    assert conversations(talk) == [said(AMY, system="Add."), said(MIA, system="Add."), said(MIA)]


def test_temperature_and_seed(talk):
    fine(talk("/temperature 0.7", MIA, MIA, "/again", options=("--seed", 5, "--top-k", 4)))
    given = [more for _, more in talk.asked]
    assert [(g["seed"], g["temperature"], g["top_k"]) for g in given] == [(5, 0.7, 4), (6, 0.7, 4), (7, 0.7, 4)]


def test_what_is_asked_for_is_told(talk, lm):
    result = talk("/policy", "/cache", "/length", "/temperature", "/system", "/help")
    assert (result.exit_code, result.stdout) == (0, "")
    policy, cache = lm.setting()
    for word in (f"policy: {policy}", f"cache: {cache}", "256", "temperature: 0", *(f"/{name}" for name in COMMANDS)):
        assert word in result.stderr


# --- what goes wrong


@pytest.mark.slow
def test_a_conversation_that_is_too_long(talk):
    result = talk(*[LONG.replace("\n", " ")] * 3, "/clear", MIA, options=("-p", "threshold(tau=0.5)", "-n", "64"))
    assert result.exit_code == 1
    assert all("/undo" in message and "/length" in message for message in errors(result))
    assert len(errors(result)) >= 1
    assert conversations(talk)[-1] == said(MIA)


def test_an_answer_that_fails_leaves_the_conversation(talk, lm, monkeypatch):
    from unmask.policies.threshold import Threshold

    monkeypatch.setattr(Threshold, "decide", lambda *_: 1 / 0)
    result = talk(MIA, "/policy threshold", AMY, "/policy vanilla", "/again")
    assert "ZeroDivisionError" in errors(result)[0]
    assert result.exit_code == 1
    assert conversations(talk)[2] == conversations(talk)[1]
    assert result.stdout.count("Answer: ") == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("-p", "nope"), "nope"),
        (("-c", "nope"), "nope"),
        (("--temperature", "-1"), "temperature"),
        (("--history", ""), "--history"),
        (("-m", "/nowhere/at/all"), "/nowhere/at/all"),
        (("-n", "0"), "gen-length"),
    ],
)
def test_bad_options(options, named):
    result = cli("chat", *options, input=f"{AMY}\n")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert named in result.stderr.splitlines()[-1]


def test_a_model_without_a_tokenizer(tmp_path):
    result = cli("chat", "-m", write(tmp_path / "bare", tokenizer=False), input="Hi\n")
    assert result.exit_code == 2
    assert "tokenizer.json" in result.stderr


def test_bytes_that_are_no_text(talk):
    result = talk(raw=b"\xef\xbb\xbf" + MIA.encode() + b"\r\n\xff\n")
    assert result.exit_code == 2
    assert "line 2" in result.stderr
    assert conversations(talk) == [said(MIA)]


def test_the_place_of_the_history(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_history() == str(tmp_path / "unmask" / "history")


# --- in a terminal

START = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from unmask.cli import main
main()
"""


class Screen:
    """A program in a terminal of its own: type, and wait for what it shows."""

    def __init__(self, number, process):
        self.number, self.process, self.seen, self.at = number, process, "", 0

    def type(self, text):
        os.write(self.number, text.encode())

    def until(self, text, again=None):
        """Wait for a text behind what was waited for before; what came up to its end. ``again``: typed every three
        seconds, for Ctrl-C: Python forgets an interrupt that comes while it reads a key, until the next one.
        """
        began = last = time.monotonic()
        while (found := self.seen.find(text, self.at)) < 0:
            now = time.monotonic()
            assert now - began < PATIENCE, f"no {text!r} in {self.seen[self.at :][-500:]!r}"
            if again and now - last > 3:
                last = now
                self.type(again)
            if select.select([self.number], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.number, 1 << 16).decode(errors="replace")
                except OSError:  # Linux says so where others say the end
                    raise AssertionError(f"ended without {text!r}: {self.seen[self.at :]!r}") from None
        begin, self.at = self.at, found + len(text)
        return self.seen[begin : self.at]

    def interrupt(self, text):
        """Ctrl-C, and wait for a text."""
        self.type("\x03")
        self.until(text, again="\x03")

    def end(self):
        """Read until the program ends; its exit code."""
        with suppress(OSError):
            while chunk := os.read(self.number, 1 << 16):
                self.seen += chunk.decode(errors="replace")
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(*args, cold=False, **more):
    """``unmask chat`` in a terminal; ``cold``: in a process that has to import it."""
    pty = pytest.importorskip("pty")  # Windows has none
    here, there = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40", "INPUTRC": "/dev/null"}
    environment["UNMASK_TERMINAL"] = "1"
    command = [*([sys.executable, "-c", START] if cold else warm.command()), "chat", *map(str, args)]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), there) | more
    with subprocess.Popen(command, **streams, env=environment, start_new_session=True) as process:
        os.close(there)
        try:
            yield Screen(here, process)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            os.close(here)


@pytest.mark.slow
def test_in_a_terminal(tmp_path):
    history = tmp_path / "deep" / "history"
    with terminal("--history", history, "-n", 64, cold=True) as screen:
        assert "unmask-tiny" in screen.until("Ctrl-D leaves.")
        screen.until("> ")
        screen.type(AMY + "\r")
        assert "forward pass 1" in screen.until("7+5=12\r\nAnswer: 12\r\n")
        assert "tokens per forward pass" in screen.until("> ")
        screen.type("/pol\tthresh\t\r")  # completed
        assert "policy: threshold" in screen.until("policy: threshold\r\n")
        screen.until("> ")
        screen.type("\x1b[A\x1b[A\r")  # the question again, by its history
        screen.until("tokens per forward pass")
        screen.until("> ")
        screen.type("\x04")
        assert screen.end() == 0
    assert history.read_text().splitlines()[0] == AMY
    assert history.stat().st_mode & 0o077 == 0
    with terminal("--history", history, "-n", 64, "--no-watch") as screen:
        screen.until("> ")
        screen.type(f"\x1b[200~{SUDOKU}\x1b[201~\r")  # pasted: one message
        screen.until("3214\r\n4132\r\n1423\r\n2341\r\n")
        screen.until("> ")
        screen.type("/undo\r")
        screen.until("undone: Solve the sudoku: 0214")
        screen.until("> ")
        screen.type("\x1b[A" * 6 + "\r")
        assert "forward pass 1" not in screen.until("Answer: 12\r\n")
        screen.until("> ")
        screen.type("/quit\r")
        assert screen.end() == 0
    assert history.read_text().splitlines()[-2:] == [AMY, "/quit"]


@pytest.mark.slow
def test_ctrl_c_stops_one_answer(tmp_path):
    with terminal("--history", "-", "-p", "vanilla", "-n", 1024, "--ignore-eos") as screen:
        screen.until("> ")
        screen.interrupt("/quit")
        screen.until("> ")
        screen.type(AMY + "\r")
        screen.until("forward pass 3")
        screen.interrupt("stopped")
        screen.until("> ")
        screen.type("/undo\r")  # the stopped question is not in the conversation
        screen.until("error: /undo")
        screen.until("> ")
        screen.type("/length 24\r")
        screen.until("24 tokens")
        screen.until("> ")
        screen.type("/again\r")
        screen.until("Answer: 12")
        screen.until("/length")  # it fills all of its tokens
        screen.until("> ")
        screen.type("half a line")
        screen.until("half a line")
        screen.interrupt("> ")
        screen.type("/quit\r")
        assert screen.end() == 0


@pytest.mark.slow
def test_answers_to_a_file_from_a_terminal(tmp_path):
    with (tmp_path / "answers").open("w") as file, terminal("--history", "-", "-n", 64, stdout=file) as screen:
        screen.until("> ")
        screen.type(AMY + "\n")
        screen.until("tokens per forward pass")
        screen.type("\x04")
        assert screen.end() == 0
    assert (tmp_path / "answers").read_text() == "3+4=7\n7+5=12\nAnswer: 12\n"


@pytest.mark.slow
def test_ctrl_c_ends_a_pipe():
    command = [*warm.command(), "chat", "-p", "vanilla", "-n", "16"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(f"{MIA}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"7+3")  # it has begun
        process.stdin.write(f"/length 1800\n/clear\n{MIA}\n".encode())
        process.stdin.flush()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_completions():
    assert completions("/p") == ["/policy "]
    assert "/policy " in completions("/")
    assert completions("/policy thr") == ["threshold"]
    assert completions("/cache d2") == ["d2"]
    assert completions("/undo x") == completions("Amy") == completions("Amy h") == []
