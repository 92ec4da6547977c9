"""The process in which chat templates run: jinja2's sandbox, within limits that the operating system keeps.

The sandbox keeps a template from the interpreter's insides, but not from loops within loops, `2 ** 10 ** 10` or strings
that double: any of them would hold the interpreter of whoever renders it, or take all memory. Here a timer of the
kernel ends the process, and memory beyond the limit is refused. Once its modules are loaded it opens no file any more,
so that a template that left the sandbox would find itself in a process that can reach nothing.

Parent and process exchange JSON, each message after its length (`read_message`, `write_message`).
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import IO, Any

import jinja2
import jinja2.debug  # jinja2 itself loads it when an error occurs, and no file can be opened then
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # pragma: no cover - not a POSIX system
    resource = None  # type: ignore[assignment]

MEMORY_LIMIT = 1 << 30  # bytes beyond what the process has when it is ready
MESSAGE_LIMIT = 1 << 30  # bytes of one message
RENDERED_LIMIT = 64 << 20  # characters that one conversation may become
LENGTH_BYTES = 8
EVERYTHING = (
    r"{{ '\n' }}{{ [{}] | tojson(indent=1) | pprint }}{{ strftime_now('%c') }}{{ 'x' | wordwrap }}{{ lipsum(n=1) }}"
)
REFUSED = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None where there is none or only a part of one, or where it is no object or too large."""
    length = int.from_bytes(stream.read(LENGTH_BYTES), "big")
    if not 0 < length <= MESSAGE_LIMIT:
        return None
    content = stream.read(length)
    try:
        message = json.loads(content)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def write_message(stream: IO[bytes], message: Mapping[str, Any]) -> None:
    """Send a message; lone surrogates pass, since all of it is written in ASCII."""
    content = json.dumps(message).encode("ascii")
    stream.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
    stream.flush()


def main() -> None:
    """Compile the sources of the first message, then render one conversation for each that follows, until the end."""
    for sent_to_all in (signal.SIGINT, signal.SIGTERM):  # meant for the parent, whose end is the end of input here
        signal.signal(sent_to_all, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    first = read_message(requests)
    if first is None:
        return
    _confine()
    seconds = float(first["seconds"])
    with _timed(seconds):
        answer, templates = _compiled(first["sources"])
    write_message(answers, answer)
    while templates and (request := read_message(requests)) is not None:
        with _timed(seconds):
            answer = _rendered(templates[request["template"]], request["values"])
            write_message(answers, answer)
        request = answer = {}


def _compiled(sources: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, jinja2.Template]]:
    environment = _environment()
    try:
        return {}, {name: environment.from_string(source) for name, source in sources.items()}
    except REFUSED as error:
        return {"refused": _said(error)}, {}


def _rendered(template: jinja2.Template, values: Mapping[str, Any]) -> dict[str, Any]:
    parts, length = [], 0
    try:
        for part in template.generate(**values):
            length += len(part)
            if length > RENDERED_LIMIT:
                return {"too_long": True}
            parts.append(part)
        return {"text": "".join(parts)}
    except REFUSED as error:
        return {"refused": _said(error)}


def _said(error: BaseException) -> str:
    return "it takes too much memory" if isinstance(error, MemoryError) else f"{error}"[:1000]


@contextlib.contextmanager
def _timed(seconds: float) -> Iterator[None]:
    """The kernel ends this process where what follows takes more of a processor, within native code too."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _confine() -> None:
    """So much memory and no more, and no file or connection opened from now on, where the system knows such limits."""
    if resource is None:  # pragma: no cover
        return
    _environment().from_string(EVERYTHING).render()
    taken = 0
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as statm:  # noqa: PTH123
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    limits = [(resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_CORE, 0)]
    if taken:  # other systems do not keep the limit
        limits.append((resource.RLIMIT_AS, taken + MEMORY_LIMIT))
    for kind, most in limits:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up, so that a template means the same here as there."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's words for training: here its content, as it stands."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
