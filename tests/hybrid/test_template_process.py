"""Templates that compute for ever, take all memory or leave the sandbox: what the operating system holds them to."""

import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from hybrid import template_process
from hybrid.template_process import START, TemplateProcess, TemplateRefused
from hybrid.template_sandbox import MESSAGE_LIMIT, read_message, write_message

HELLO = "hello {{ name }}"


@pytest.fixture
def processes():
    """`processes(source) -> TemplateProcess`, closed after the test."""
    made = []

    def make(source):
        made.append(TemplateProcess({"default": source, "hello": HELLO}, seconds=0.5))
        return made[-1]

    yield make
    for process in made:
        process.close()


def pid_of(process):
    return process._process.pid


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 0.5 s"),
        ("{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n else '' }}{% endmacro %}{{ m(60) }}", "more than 0.5 s"),
        ("{{ n ** (n ** n) % 7 }}", "memory|more than 0.5 s"),
        ("{{ 'x' * n ** 12 }}", "memory"),
        ("{{ [0] * n ** 12 }}", "memory"),
        ("{{ 'x' | center(n ** 12) }}", "memory"),
        ("{{ '%*d' | format(n ** 9 * 2, 1) }}", "memory"),
        ("{{ 'aaaa'.replace('', 'x' * n ** 7 * 2).replace('', 'x' * 1000) }}", "memory"),
        (
            "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "memory|more than 0.5 s",
        ),
        ("{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "makes over"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ lipsum(n=9999999) }}", "memory|more than 0.5 s"),
    ],
)
def test_what_has_no_end_is_refused_and_the_next_conversation_is_not(processes, template, said):
    process = processes(template)
    with pytest.raises(TemplateRefused, match=said):
        process.render("default", {"n": 10})
    assert process.render("hello", {"name": "you"}) == "hello you"


@pytest.mark.parametrize("source", ["{{ 10 ** (10 ** 10) }}", "{{ 'x' * 10 ** 12 }}", "{{ 'x' * 10 ** 10 * 10 ** 3 }}"])
def test_constants_that_jinja_computes_while_it_compiles_are_bounded_too(source):
    with pytest.raises(TemplateRefused, match=r"memory|more than 0.5 s"):
        TemplateProcess({"default": source}, seconds=0.5).render("default", {})


def test_a_template_that_left_the_sandbox_would_reach_nothing():
    escaped = (
        "import sys, os, socket; sys.path[:] = sys.argv[1:]; from hybrid import template_sandbox; "
        "template_sandbox._confine()\n"
        "for attempt in (lambda: open('/etc/hostname'), lambda: socket.socket(), lambda: os.pipe(), "
        "lambda: open('/tmp/made-by-template', 'w'), lambda: os.posix_spawn('/bin/true', ['true'], {})):\n"
        "    try:\n        attempt()\n    except OSError:\n        continue\n    print('reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", escaped, *filter(None, sys.path)], capture_output=True, text=True)
    # A program may be started, but ends when it cannot open the libraries that it is made of.
    assert done.stdout.count("reached") <= 1 and done.returncode == 0, done


def test_ctrl_c_is_for_the_parent_and_its_end_is_the_process_s(processes):
    process = processes(HELLO)
    pid = pid_of(process)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert process.render("default", {"name": "still"}) == "hello still"
    child = psutil.Process(pid)
    process.close()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert process.render("default", {"name": "again"}) == "hello again"
    assert pid_of(process) != pid


def test_an_object_that_is_dropped_ends_its_process(processes):
    process = TemplateProcess({"default": HELLO})
    child = psutil.Process(pid_of(process))
    del process
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_was_killed_is_started_again(processes):
    process = processes(HELLO)
    os.kill(pid_of(process), signal.SIGKILL)
    with pytest.raises(TemplateRefused):
        process.render("default", {"name": "x"})
    assert process.render("default", {"name": "x"}) == "hello x"


def test_a_process_that_says_nothing_is_given_up(processes, monkeypatch):
    process = processes(HELLO)
    monkeypatch.setattr(template_process, "WALL_SECONDS", 1)
    os.kill(pid_of(process), signal.SIGSTOP)
    with pytest.raises(TemplateRefused):
        process.render("default", {"name": "x"})
    monkeypatch.undo()
    assert process.render("default", {"name": "x"}) == "hello x"


def test_threads_take_turns_and_each_gets_its_own_text(processes):
    process, wrong = processes(HELLO), []

    def ask(number):
        for i in range(30):
            if process.render("default", {"name": f"{number}.{i}"}) != f"hello {number}.{i}":
                wrong.append((number, i))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("text", ["\ud800", "\x00", "ä🎈", "{{ 1 }}", "x" * (1 << 20)])
def test_any_text_passes_unchanged(processes, text):
    assert processes(HELLO).render("default", {"name": text}) == "hello " + text


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\xff" * 8, (MESSAGE_LIMIT + 1).to_bytes(8, "big"), b"\0" * 7 + b"\2{}"[:1] + b"[]"],
)
def test_what_is_no_message_is_none(tmp_path, content):
    path = tmp_path / "message"
    path.write_bytes(content)
    with path.open("rb") as stream:
        assert read_message(stream) is None


def test_messages_are_json_after_their_length(tmp_path):
    with (tmp_path / "message").open("w+b") as stream:
        write_message(stream, {"a": ["ä", None]})
        stream.seek(0)
        assert read_message(stream) == {"a": ["ä", None]}
        stream.seek(8)
        assert json.loads(stream.read()) == {"a": ["ä", None]}


def test_the_process_runs_without_its_parent_s_words_on_the_command_line():
    done = subprocess.run([sys.executable, "-c", START, *filter(None, sys.path)], input=b"", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
