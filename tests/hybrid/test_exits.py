"""How commands end: codes, interrupts at any moment, readers that go away. Each in a process of its own."""

import errno
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybrid import display, exits
from hybrid.exits import Exit, UsageError
from profiler.artifacts import UserError

HYBRID = (sys.executable, "-m", "hybrid")

# Runs a command, and is interrupted when a module is looked for.
INTERRUPTED_AT = """
import os, signal, sys
module, sys.argv = sys.argv[1], ["hybrid", *sys.argv[2:]]
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from hybrid.__main__ import main
main()
"""


def run(*arguments, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*HYBRID, *map(str, arguments)], text=True, timeout=300, **options)


@pytest.mark.parametrize("module", ["hybrid.cli", "typer", "hybrid.reports", "hybrid.cli_run"])
def test_an_interrupt_while_the_command_line_is_loaded(module):
    code = [sys.executable, "-c", INTERRUPTED_AT, module, "--help"]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("module", ["torch", "torch.nn", "hybrid.ops.cpu"])
def test_an_interrupt_while_the_engine_is_loaded(demo, module):
    code = [sys.executable, "-c", INTERRUPTED_AT, module, "run", str(demo), "x"]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interrupt_in_the_middle_of_a_text(demo):
    command = [*HYBRID, "run", str(demo), "class Stack:", "-n", "400", "--context", "512"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    begun = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=300)
    assert begun.startswith(b"class Stack:")
    assert process.returncode == 130 or (process.returncode == 0 and len(rest) > 400)
    assert b"Traceback" not in err and b"hybrid: " not in err


def test_ignored_interrupts_stay_ignored(demo):
    command = [*HYBRID, "run", str(demo), "class Stack:", "-n", "100"]
    ignoring = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731 - as nohup and `&` do
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ignoring)
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 0


@pytest.mark.parametrize("arguments", [("-n", 400, "--context", 512), ("-n", 4, "--json")])
def test_a_reader_that_goes_away_ends_the_command_quietly(demo, arguments):
    command = [*HYBRID, "run", str(demo), "class Stack:" * 9, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if "--json" not in arguments:
        assert process.stdout.read(5)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=300) == 0
    assert b"Traceback" not in err and b"rror" not in err


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("simulate", "--list"), ("cache", "list", "--json")]
)
def test_nobody_reads_from_the_start(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    for streams in ({"stdout": writing}, {"stdout": writing, "stderr": writing}):
        done = run(*arguments, **streams)
        assert done.returncode == 0
        assert not done.stderr
    os.close(writing)


def test_a_result_that_cannot_be_written_is_an_error(demo):
    with Path("/dev/full").open("w") as full:
        done = run("inspect", demo, stdout=full)
    assert (done.returncode, done.stderr) == (1, "hybrid: cannot write the result: No space left on device\n")
    done = run("inspect", demo, stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (1, "hybrid: cannot write the result: stdout is closed\n")
    done = run("inspect", demo, stderr=None, preexec_fn=lambda: os.close(2))
    assert done.returncode == 0 and "7.0 M parameters" in done.stdout


def test_what_an_encoding_lacks_is_shown_as_its_code(demo):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run("run", demo, "caf\u00e9 = ", "-n", 2, env=environment)
    assert done.returncode == 0
    assert done.stdout.startswith("caf\\xe9 = ")


def terminal(*arguments, **environment):
    """What a command shows on a terminal of its own, and how it ends."""
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")} | environment
    process = subprocess.Popen(
        [*HYBRID, *map(str, arguments)], stdin=slave, stdout=subprocess.PIPE, stderr=slave, env=environment
    )
    os.close(slave)
    shown, until = b"", time.monotonic() + 300
    while time.monotonic() < until:
        if select.select([master], [], [], 1)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError as error:
                assert error.errno == errno.EIO  # its last writer ended
                break
    out, _ = process.communicate(timeout=60)
    os.close(master)
    return process.returncode, out.decode(), shown.decode()


def test_bars_are_for_terminals_and_colours_can_be_left_out(demo):
    verify = ("inspect", demo, "--verify")
    colours = re.compile(r"\x1b\[[0-9;]*m")
    plain = run(*verify)
    assert (plain.returncode, plain.stderr) == (0, "")
    for environment, bars, coloured in (
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
    ):
        code, out, shown = terminal(*verify, **environment)
        assert (code, out) == (0, plain.stdout)
        assert ("verifying" in shown) == bars
        assert any(re.search(r"[3-4][0-9]", found) for found in colours.findall(shown)) == coloured


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("mend it"), Exit.ERROR, "hybrid: mend it\n"),
        (UsageError("say it"), Exit.USAGE, "hybrid: say it\n"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, ""),
        (MemoryError(), Exit.ERROR, "hybrid: out of memory; close something, or use a smaller --context\n"),
        (SystemExit(2), Exit.USAGE, ""),
    ],
)
def test_outcomes(capsys, error, code, said):
    def command():
        raise error

    with pytest.raises(SystemExit) as ended:
        exits.run(command)
    assert ended.value.code == code
    assert capsys.readouterr().err == said


def test_a_library_that_makes_an_error_of_an_interrupt(capsys):
    def command():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("half imported") from error

    with pytest.raises(SystemExit) as ended:
        exits.run(command)
    assert ended.value.code == Exit.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_an_interrupt_that_a_callback_loses_comes_again(capsys):
    class Callback:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def command():
        Callback()
        time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        exits.run(command)
    assert ended.value.code == Exit.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_an_error_of_the_program_is_not_hidden():
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exits.run(command)
    with pytest.raises(BrokenPipeError):  # of a pipe that is neither stdout nor stderr
        exits.run(raise_broken_pipe)


def raise_broken_pipe():
    raise BrokenPipeError(errno.EPIPE, "a child went away")


def test_notes_to_nobody_are_dropped(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    display.note("x")
