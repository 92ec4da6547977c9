"""`hybrid chat`: through a pipe, and in a terminal of its own, as a user types."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from hybrid.chat_terminal import stopping
from hybrid.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def piped(hybrid, monkeypatch):
    """`piped(text, *arguments)`: the command, with a text for its standard input."""

    def run(text, *arguments):
        data = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        return hybrid("chat", *arguments)

    return run


def test_each_line_of_a_pipe_is_answered_and_stdout_has_nothing_else(piped, demo):
    code, out, err = piped("def add(a, b):\n\n/help\n", demo, "-n", 8, "--temperature", 0, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(answers) == 2, "empty lines are none, and commands are messages here"
    assert answers[1]["prompt_tokens"] > answers[0]["prompt_tokens"]
    assert answers[1]["cached_tokens"] > 0
    assert "no chat template" in err
    code, plain, _ = piped("def add(a, b):\n", demo, "-n", 8, "--temperature", 0)
    assert (code, plain.strip()) == (0, answers[0]["answer"])
    assert plain.endswith("\n")


def test_a_chat_template_is_used_where_there_is_one(piped, demo_copy):
    (demo_copy / "chat_template.jinja").write_text(TEMPLATE)
    code, out, err = piped("x\n", demo_copy, "-n", 4, "--system", "S", "--json")
    assert code == 0
    assert "warning" not in err
    ids = load_tokenizer(demo_copy).encode_chat("<system>S<user>x<a>")
    assert json.loads(out)["prompt_tokens"] == len(ids)
    (demo_copy / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    code, out, err = piped("x\n", demo_copy)
    assert (code, out) == (1, "")
    assert "no such role" in err and "Traceback" not in err


def test_answers_meet_a_schema_and_the_models_recommendation_is_followed(piped, demo_copy, tmp_path):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema | {"additionalProperties": False}))
    code, out, _ = piped("a\nb\n", demo_copy, "--json-schema", path, "--seed", 1)
    assert code == 0
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(out)
    second, _ = decoder.raw_decode(out[end:].lstrip())
    assert {type(answer["ok"]) for answer in (first, second)} == {bool}
    recommended = json.loads((demo_copy / "generation_config.json").read_text())
    (demo_copy / "generation_config.json").write_text(json.dumps(recommended | {"temperature": 0.0, "top_p": 0.0}))
    assert len({piped("import \n", demo_copy, "-n", 6)[1] for _ in range(3)}) == 1, "greedy needs no seed"


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (b"caf\xe9\n", (), "line 1 of the input is not UTF-8"),
        ("x = 1\n" + "y = 2 " * 3000, ("--context", 64, "-n", 2), "--context"),
        ("x\n", ("--top-p", 0), "top_p"),
        ("x\n", ("--regex", "(a"), "unclosed group"),
        ("x\n", ("--json-schema", "no-such-file.json"), "no-such-file.json"),
    ],
)
def test_mistakes_end_in_one_line(piped, demo, text, arguments, said):
    code, _, err = piped(text, demo, *arguments)
    assert code == 1
    assert said in err
    assert "Traceback" not in err


def test_a_second_interrupt_does_not_wait_for_the_step():
    before = signal.getsignal(signal.SIGINT)
    with stopping() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


class Typist:
    """`hybrid chat` in a terminal of its own, and somebody who types."""

    def __init__(self, *arguments):
        self.shown = ""
        self.master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        command = [sys.executable, "-m", "hybrid.cli", "chat", *map(str, arguments)]
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)

    def type(self, text):
        os.write(self.master, text.encode())

    def interrupt_the_prompt(self, pattern):
        """Ctrl-C where a line is read: readline that is about to wait for a key notices one only with the next key."""
        for _ in range(20):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.until(pattern, seconds=3)
        return self.until(pattern, seconds=3)

    def until(self, pattern, seconds=120):
        """What is shown up to a pattern; it is not shown again."""
        ends = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < ends, f"no {pattern!r} in {self.shown!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.master, 4096).decode(errors="replace").replace("\r\n", "\n")
                except OSError:
                    assert re.search(pattern, self.shown), f"ended without {pattern!r}: {self.shown!r}"
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before


@pytest.fixture
def typist():
    """`typist(*arguments)`: somebody who talks to a model in a terminal."""
    opened = []

    def make(*arguments):
        opened.append(Typist(*arguments))
        return opened[-1]

    yield make
    for one in opened:
        one.process.kill()
        one.process.wait()
        os.close(one.master)


def test_a_conversation_in_a_terminal(typist, demo_copy, tmp_path):
    (demo_copy / "chat_template.jinja").write_text(TEMPLATE)
    one, saved = typist(demo_copy, "--temperature", 0, "-n", 400, "--stop", "never"), tmp_path / "saved.json"
    one.until("> $")
    one.type("/system Be brief.\n")
    one.until(r"\(told before the conversation\)\n> $")
    one.type("class Stack:\n")
    one.until("[a-z]{3}")  # the answer has begun
    one.type("\x03")
    one.until(r"\(stopped\)\n> $")
    one.interrupt_the_prompt(r"Ctrl-D or /exit ends\)\n> $")
    one.type("/nonsense\n")
    one.until("no command /nonsense.*\n> $")
    one.type("/stats\n")
    assert "written" in one.until("computed before.*\n> $")
    one.type("//slash \\\n")
    one.until(r"\. $")
    one.type("two\n")
    one.until("[a-z]{3}")
    one.type("\x03")
    one.until(r"\(stopped.*\)\n> $")
    one.type(f"/save {saved}\n")
    one.until(r"\(saved as .*\)\n> $")
    messages = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in messages][:2] == ["system", "user"]
    assert messages[0]["content"] == "Be brief."
    assert messages[1]["content"] == "class Stack:"
    assert messages[2]["content"]
    assert messages[3]["content"] == "/slash \ntwo"
    one.type(f"/save {saved}\n")
    one.until("there already.*\n> $")
    one.type("/undo\n")
    one.until(r"taken back; 1 .*\n> $")
    one.type("/clear\n/retry\n")
    one.until("no message to answer again\n> $")
    one.type("\x04")
    assert one.process.wait(60) == 0


def test_a_long_message_that_is_still_read_can_be_stopped_and_asked_again(typist, demo_copy):
    (demo_copy / "chat_template.jinja").write_text(TEMPLATE)
    # A second of reading becomes a minute; it is interrupted about a second after it began.
    slowly = ("--vram", "7MiB", "--second-device", "cpu", "--slowdown", "cpu=100", "--slowdown", "gpu=100")
    one = typist(demo_copy, "--temperature", 0, "-n", 3, *slowly)
    one.until("> $")
    one.type("def f(a, b): \\\n" * 40 + "x\n")
    one.until(r"(\. ){40}$")
    time.sleep(1)
    one.type("\x03")
    one.until(r"dropped, /retry asks it again\)\n> $")
    one.type("/retry\n")
    time.sleep(1)
    one.type("\x03")
    one.until(r"dropped, /retry asks it again\)\n> $")
    one.type("/exit\n")
    assert one.process.wait(60) == 0


def test_a_model_cannot_write_to_the_terminals_controls(typist, demo_copy):
    (demo_copy / "chat_template.jinja").write_text(TEMPLATE)
    one = typist(demo_copy, "--regex", "ab\\x1b\\]0;title\\x07cd")
    one.until("> $")
    one.type("x\n")
    assert "\x1b" not in one.until("cd\n> $")


def test_help_of_the_shared_options(hybrid):
    for command in ("run", "chat"):
        code, out, _ = hybrid(command, "--help")
        assert code == 0
        for option in ("--min-p", "--repetition-penalty", "--presence-penalty", "--json-schema", "--regex", "--stop"):
            assert option in out


def test_two_grammars_are_a_mistake_of_usage(hybrid, demo):
    for command in (("run", demo, "x"), ("chat", demo)):
        code, out, err = hybrid(*command, "--regex", "a", "--json-schema", "s.json")
        assert (code, out) == (2, "")
        assert err == "hybrid: --json-schema and --regex both say what the text must be; give one of them\n"


def test_run_writes_several_texts_and_log_probabilities(hybrid, refused, demo):
    options = ("-n", 5, "--temperature", 1, "--seed", 3, "--min-p", 0.01, "--presence-penalty", 0.5)
    code, out, err = hybrid("run", demo, "class ", *options, "--n", 3, "--logprobs", 2, "--json")
    body = json.loads(out)
    assert code == 0
    assert len({c["text"] for c in body["completions"]}) > 1
    assert all(len(c["logprobs"]) == len(c["token_ids"]) <= 5 for c in body["completions"])
    code, out, err = hybrid("run", demo, "class ", *options, "-N", 3, "--logprobs", 1)
    assert [out.count(f"[{i} of 3]\nclass ") for i in (1, 2, 3)] == [1, 1, 1]
    assert len(re.findall(r"^ +-\d+\.\d{3}  '", err, re.MULTILINE)) == sum(
        len(c["token_ids"]) for c in body["completions"]
    )
    code, out, _ = hybrid("run", demo, "version = ", "--regex", '"[0-9]\\.[0-9]"', "-n", 20)
    assert re.fullmatch('version = "[0-9]\\.[0-9]"\n', out)
    assert "frequency_penalty" in refused("run", demo, "x", "--frequency-penalty", 3)
    assert "n is 129" in refused("run", demo, "x", "--n", 129)


def test_chat_without_a_model_says_what_is_missing(hybrid, refused, tmp_path):
    assert hybrid("chat")[0] == 2
    assert str(tmp_path) in refused("chat", tmp_path / "nothing")
