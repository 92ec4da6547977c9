"""A conversation in a terminal, whose answers appear as they come and which Ctrl-C stops; or through a pipe."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

from hybrid import display
from hybrid.chat_session import ChatSession
from profiler.artifacts import UserError, explain_os_errors, write_atomic

PROMPT, MORE = "> ", ". "
# Control characters that a model may write and a terminal would obey; new lines and tabs stay.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
UNANSWERED = "(stopped; the message has no answer and is dropped, /retry asks it again)"
HELP = """/retry         answer the last message again, in another way
/undo          take the last message and its answer back
/clear         begin a new conversation
/system TEXT   tell the model TEXT before the conversation; without TEXT nothing any more
/save FILE     write the conversation into a new file, as JSON
/stats         say how fast the last answer was, and how full the context is
/help          show this
/exit          end, as Ctrl-D does
A line that ends in \\ goes on in the next one. // begins a message with a slash. Ctrl-C stops an answer."""


def converse(session: ChatSession, as_json: bool = False) -> None:
    """Read messages and commands from the terminal until its user ends it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - `input` edits lines with it once it is there
    display.note("Ctrl-D ends, /help says more.")
    terminal = Terminal(session, as_json)
    while not terminal.ended:
        try:
            terminal.take(read_message())
        except KeyboardInterrupt:  # of an answer `stopping` hears it
            display.note("\n(Ctrl-D or /exit ends)")
        except EOFError:
            display.note("")
            return
        except UnicodeDecodeError:
            display.note("that is not UTF-8 text; nothing was asked")
        except UserError as error:
            display.note(f"hybrid: {error}")


def answer_lines(session: ChatSession, lines: Iterable[bytes], as_json: bool = False) -> None:
    """Answer each line that is not empty; stdout carries answers alone, each ended by a new line.

    Raises:
        UserError: a line is not UTF-8, or could not be answered; those after it are not read.
    """
    for number, line in enumerate(lines, 1):
        try:
            question = line.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} of the input is not UTF-8 text") from error
        if question:
            forgotten = session.forgotten
            show(session, session.ask(question), as_json, raw=True)
            tell_forgotten(session, forgotten)


class Terminal:
    """What lines that a user types do to a session."""

    def __init__(self, session: ChatSession, as_json: bool = False) -> None:
        self.session, self.ended = session, False
        self._as_json = as_json
        self._commands: dict[str, Callable[[str], None]] = {
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/system": self._system,
            "/save": self._save,
            "/stats": self._stats,
            "/help": lambda rest: display.note(HELP),
            "/exit": self._exit,
            "/quit": self._exit,
        }

    def take(self, line: str) -> None:
        """A message is answered, a command done.

        Raises:
            UserError: it could not be, and nothing changed.
        """
        if line.startswith("//"):
            self._answer(line[1:])
        elif line.startswith("/"):
            name, _, rest = line.partition(" ")
            command = self._commands.get(name)
            if command is None:
                raise UserError(f"there is no command {name}; /help lists them, and // begins a message with a slash")
            command(rest.strip())
        elif line.strip():
            self._answer(line)

    def _answer(self, question: str) -> None:
        forgotten = self.session.forgotten
        try:
            with stopping() as stopped:
                show(self.session, self.session.ask(question, stopped), self._as_json, raw=not sys.stdout.isatty())
        except KeyboardInterrupt:
            display.note(UNANSWERED)
            return
        last = self.session.last
        if last is not None and last.finish_reason == "cancelled":
            display.note(UNANSWERED if self.session.dropped else "(stopped)")
        elif last is not None and last.finish_reason == "length":
            display.note("(cut: it reached --max-tokens or the end of the context)")
        tell_forgotten(self.session, forgotten)

    def _retry(self, rest: str) -> None:
        question = self.session.dropped or self.session.take_back()
        if question is None:
            raise UserError("there is no message to answer again")
        self._answer(question)

    def _undo(self, rest: str) -> None:
        if self.session.take_back() is None:
            raise UserError("there is nothing to take back")
        display.note(f"(taken back; {len(self.session.turns) // 2} messages are left)")

    def _clear(self, rest: str) -> None:
        self.session.clear()
        display.note("(a new conversation)")

    def _system(self, rest: str) -> None:
        self.session.system = rest
        display.note("(told before the conversation)" if rest else "(nothing is told before the conversation)")

    def _save(self, rest: str) -> None:
        if not rest:
            raise UserError("/save needs the name of a file")
        path = Path(rest).expanduser()
        if path.exists():
            raise UserError(f"{path} is there already; choose another name")
        data = json.dumps({"messages": self.session.messages()}, ensure_ascii=False, indent=1) + "\n"
        with explain_os_errors("save the conversation", path.parent):
            write_atomic(path, data.encode())
        display.note(f"(saved as {path})")

    def _stats(self, rest: str) -> None:
        figures = self.session.figures()
        if not figures:
            raise UserError("nothing was answered yet")
        used = figures["prompt_tokens"] + figures["completion_tokens"]
        first = figures["first_token_seconds"]
        display.note(
            f"{used} of {figures['context']} tokens of context: {figures['prompt_tokens']} read, of which "
            f"{figures['cached_tokens']} were computed before, {figures['completion_tokens']} written"
            + ("" if first is None else f"; the first after {first * 1000:.0f} ms")
        )

    def _exit(self, rest: str) -> None:
        self.ended = True


def read_message() -> str:
    """A line of the terminal, with those after it while they end in a backslash."""
    line = read_line(PROMPT)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read_line(MORE)
    return line


def read_line(prompt: str) -> str:
    """A line; the prompt is no part of stdout where that is not the terminal."""
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()


def show(session: ChatSession, pieces: Iterator[str], as_json: bool, raw: bool) -> None:
    """Write an answer as it comes, or as JSON once all is there; control characters only where it is `raw`."""
    begun = False
    try:
        for piece in pieces:
            begun = True
            if not as_json:
                display.write(piece if raw else CONTROLS.sub("\ufffd", piece))
    finally:
        if begun and not as_json:
            display.write("\n")
    if as_json:
        answer = "" if session.last is None else session.last.text.strip()
        display.write_json("hybrid.chat/1", {"answer": answer, **session.figures()}, indent=None)
    elif not begun:
        display.write("\n")


def tell_forgotten(session: ChatSession, before: int) -> None:
    """Say so when turns were left out."""
    if session.forgotten > before:
        count = session.forgotten // 2
        display.note(f"(the context is full: the oldest {count} messages and their answers are not shown to the model)")


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """While an answer comes Ctrl-C asks for its end, once the step is computed; a second one interrupts that step."""
    asked: list[bool] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
