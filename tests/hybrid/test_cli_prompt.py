"""Where a prompt comes from, and what a model is called: `run`'s arguments as scripts give them."""

import io
import json
import shutil
import sys

import pytest

from hybrid.stages.finding import find_model


@pytest.fixture
def stdin(monkeypatch):
    """`stdin(data)`: what the command reads from its standard input."""

    def put(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))

    return put


def test_a_prompt_is_the_same_wherever_it_comes_from(hybrid, demo, stdin, tmp_path):
    prompt = "def caf\u00e9(\n    x,"
    expected = hybrid("run", demo, prompt, "-n", 6)[1]
    assert expected.startswith(prompt)
    file = tmp_path / "prompt"
    for end in ("", "\n", "\r\n"):
        file.write_bytes((prompt + end).encode())
        assert hybrid("run", demo, "--prompt-file", file, "-n", 6)[1] == expected
        for words in (("-",), ("--prompt-file", "-")):
            stdin((prompt + end).encode())
            assert hybrid("run", demo, *words, "-n", 6)[1] == expected
    file.write_bytes(f"{prompt}\n\n".encode())
    body = json.loads(hybrid("run", demo, "--prompt-file", file, "-n", 2, "--json")[1])
    assert body["prompt"] == f"{prompt}\n", "one line end is dropped"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a PROMPT (- reads it from stdin), or --prompt-file FILE"),
        (("x", "--prompt-file", "y"), "one of both"),
        (("x", "--system", "s"), "add --chat"),
    ],
)
def test_wrong_usage(hybrid, demo, arguments, said):
    code, out, err = hybrid("run", demo, *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_prompts_that_are_none(refused, demo, stdin, tmp_path, monkeypatch):
    stdin(b"caf\xe9")
    assert refused("run", demo, "-") == "hybrid: stdin is not UTF-8 text\n"
    assert refused("run", demo, "caf\udce9") == "hybrid: the prompt is not UTF-8 text\n"
    assert "nothing: No such file" in refused("run", demo, "--prompt-file", tmp_path / "nothing")
    assert "Is a directory" in refused("run", demo, "--prompt-file", tmp_path)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    assert "more than 64.0 MiB" in refused("run", demo, "--prompt-file", huge)
    monkeypatch.setattr(sys, "stdin", None)
    assert "stdin is closed" in refused("run", demo, "-")


def test_chat_applies_the_models_template(hybrid, demo, demo_copy):
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    (demo_copy / "chat_template.jinja").write_text(template)
    asked = hybrid("run", demo_copy, "x = 1", "--chat", "--system", "be brief", "-n", 8, "--json")
    written = hybrid("run", demo, "[system]be brief[user]x = 1[assistant]", "-n", 8, "--json")
    asked, written = (json.loads(out)["completions"][0] for _, out, _ in (asked, written))
    assert asked["text"] == written["text"]
    code, out, err = hybrid("run", demo_copy, "x = 1", "--chat", "--system", "be brief", "-n", 8)
    assert (code, out) == (0, f"{asked['text']}\n"), "the answer alone"
    assert "no chat template" not in err
    code, out, err = hybrid("run", demo, "x = 1", "--chat", "-n", 8)
    assert code == 0 and "has no chat template" in err


def test_demo_is_the_shipped_model_and_a_folder_of_that_name_is_a_path(hybrid, demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hybrid("inspect", "./demo")[0] == 1
    shutil.copytree(demo, "demo")
    for name in ("./demo", "demo/", str(tmp_path / "demo")):
        code, out, err = hybrid("inspect", name)
        assert (code, err) == (0, "")
        assert out.startswith(f"{tmp_path}/demo: llama"), "messages name it so that it can be typed"
    code, out, err = hybrid("inspect", "demo")
    assert (code, err) == (0, "note: demo is the model that ships with hybrid; the folder of this name is ./demo\n")
    assert out.startswith(f"{demo}: llama")
    assert find_model("demo") == demo
    assert find_model(tmp_path.joinpath("demo").relative_to(tmp_path)) == tmp_path / "demo"
