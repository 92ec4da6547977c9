"""The commands as a user types them: what they print, and what they say to mistakes. Nobody is shown a traceback."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hybrid.runtime import vram
from hybrid.stages.pack import pack
from profiler.artifacts import directory_lock

QUICKLY = ("--tokens", 3000, "--rank", 4, "--steps", 10)  # of `hybrid profile`


@pytest.fixture(scope="module")
def other_model(make_llama, tmp_path_factory):
    """A packed model that is not the demo, never profiled."""
    folder = tmp_path_factory.mktemp("other")
    pack(make_llama(folder), folder / "model")
    return folder / "model"


@pytest.fixture
def text(tmp_path, heldout):
    path = tmp_path / "text.py"
    path.write_text(heldout[:30_000], encoding="utf-8")
    return path


def test_run_prints_prompt_and_completion_and_the_figures_apart(hybrid, demo):
    code, out, err = hybrid("run", demo, "def parse_args(", "-n", 12)
    assert code == 0
    assert out.startswith("def parse_args(")
    assert len(out.strip()) > len("def parse_args(")
    assert "tokens/s" in err
    assert "memory:" in err


def test_run_as_json_tells_the_same(hybrid, demo):
    code, out, _ = hybrid("run", demo, "import ", "-n", 6, "--json")
    body = json.loads(out)
    assert code == 0
    assert body["prompt"] == "import "
    (completion,) = body["completions"]
    assert len(completion["token_ids"]) == 6
    assert completion["finish_reason"] == "length"
    assert set(body["summary"]["rows_per_token"]) == {"cpu"}


def test_sampling_is_repeatable_by_seed(hybrid, demo):
    def sample(seed):
        options = ("--temperature", 1.0, "--top-p", 0.95, "--seed", seed)
        return hybrid("run", demo, "class ", "-n", 16, *options)[1]

    assert sample(3) == sample(3)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_plan_then_run_on_the_stand_in_then_eval(hybrid, demo_copy, text):
    code, out, _ = hybrid("plan", demo_copy, "--vram", "8MiB", "--context", 256)
    assert code == 0 and "latency: optimal" in out
    code, out, err = hybrid("run", demo_copy, "class Stack:", "-n", 8, "--second-device", "cpu")
    assert code == 0 and "on the gpu" in err and "on the cpu" in err
    options = ("--text", text, "--tokens", 600, "--layer-tokens", 300, "--second-device", "cpu")
    code, out, _ = hybrid("eval", demo_copy, *options)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[2:5]] == ["dense", "exact", "predicted"]
    assert "predicted, layer" in out
    code, out, _ = hybrid("eval", demo_copy, *options, "--mode", "exact", "--json")
    body = json.loads(out)["evaluation"]
    assert code == 0
    assert [mode["mode"] for mode in body["modes"]] == ["dense", "exact"]
    assert body["modes"][1]["quality"]["agreement"] > 0.999
    assert "evaluation default: exact:" in hybrid("inspect", demo_copy)[1]


def test_inspect_verify_accepts_the_demo_and_names_a_flipped_bit(hybrid, refused, demo_copy):
    code, out, _ = hybrid("inspect", demo_copy, "--verify")
    assert code == 0 and "verified" in out
    victim = sorted((demo_copy / "neurons").iterdir())[2]
    data = bytearray(victim.read_bytes())
    data[-5000] ^= 1
    victim.write_bytes(data)
    assert victim.name in refused("inspect", demo_copy, "--verify")


def test_help_of_every_command_has_an_example(hybrid):
    for command in ("pack", "profile", "plan", "run", "compare", "eval", "inspect", "report"):
        code, out, _ = hybrid(command, "--help")
        assert code == 0 and f"Example: hybrid {command}" in out


def test_usage_mistakes_end_with_two(hybrid):
    assert hybrid("run")[0] == 2
    assert hybrid("run", "demo", "x", "--mode", "fast")[0] == 2
    assert hybrid("run", "demo", "x", "-n", "0")[0] == 2


def test_a_prompt_longer_than_the_context_is_refused(refused, demo, heldout):
    assert "--context" in refused("run", demo, heldout[:20_000])
    assert "out of range" in refused("run", demo, "x", "--context", 100_000)


def test_a_directory_that_is_none_is_refused(refused, tmp_path):
    assert str(tmp_path) in refused("run", tmp_path / "nothing", "x")
    assert str(tmp_path) in refused("inspect", tmp_path)


def test_predicted_mode_without_predictors_names_the_command(refused, other_model):
    assert "hybrid profile" in refused("run", other_model, "x", "--mode", "predicted")


def test_a_profile_of_another_model_is_refused(refused, demo, other_model, tmp_path):
    copy = shutil.copytree(other_model, tmp_path / "copy")
    for folder in ("profiles", "predictors"):
        shutil.copytree(demo / folder, copy / folder, dirs_exist_ok=True)
    assert "another model" in refused("run", copy, "x", "--mode", "predicted")
    assert "another model" in refused("plan", copy, "--vram", "8MiB")


def test_a_plan_of_another_model_or_row_order_is_refused(hybrid, refused, demo_copy, other_model, text):
    assert hybrid("plan", demo_copy, "--vram", "8MiB", "--context", 256)[0] == 0
    plan = demo_copy / "plans" / "default.json"
    assert "another model" in refused("run", other_model, "x", "--plan", plan, "--second-device", "cpu")
    assert hybrid("profile", demo_copy, "--text", text, *QUICKLY)[0] == 0
    assert "profiled anew" in refused("run", demo_copy, "x", "--plan", "default", "--second-device", "cpu")


def test_a_plan_for_more_memory_than_there_is_is_refused(hybrid, refused, demo_copy, monkeypatch):
    assert hybrid("plan", demo_copy, "--vram", "1GiB", "--context", 256)[0] == 0
    monkeypatch.setattr(vram, "available_memory", lambda: 5 << 20)
    message = refused("run", demo_copy, "x", "--plan", "default", "--second-device", "cpu")
    assert "5.0 MiB are free" in message
    assert "--vram" in message


def test_a_budget_that_is_too_small_says_what_is_missing(refused, demo):
    message = refused("plan", demo, "--vram", "1MiB", "--ram", "8MiB")
    assert "missing" in message
    assert "attention" in message
    assert "not a size" in refused("plan", demo, "--vram", "lots")


@pytest.mark.parametrize("command", ["profile", "compare", "eval"])
@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"\n", "empty"), (b"a\0b" * 100, "binary"), (b"\xff\xfe caf\xe9", "binary|UTF-8")],
)
def test_texts_that_are_none_are_refused(refused, demo, tmp_path, command, content, said):
    path = tmp_path / "text"
    path.write_bytes(content)
    assert re.search(said, refused(command, demo, "--text", path))


def test_too_little_text_says_how_much_is_needed(refused, demo_copy, tmp_path):
    path = tmp_path / "text"
    path.write_text("def f(): pass\n")
    assert "token" in refused("profile", demo_copy, "--text", path)


def test_a_second_writer_is_refused_while_the_first_writes(refused, demo_copy, text):
    with directory_lock(demo_copy, "hold it"):
        assert "another process" in refused("plan", demo_copy, "--vram", "8MiB", "--context", 256)
        assert "another process" in refused("profile", demo_copy, "--text", text, *QUICKLY)


def mount(path, *arguments):
    """Mount a file system at a new path; whoever asks for it is skipped where that is not permitted."""
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", *arguments, path], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    return path


@pytest.fixture
def read_only(demo, tmp_path):
    """The demo on a file system that cannot be written."""
    mounted = mount(tmp_path / "read-only", "--bind", demo)
    subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


def test_a_read_only_directory_runs_and_refuses_writers(hybrid, refused, read_only, text):
    assert hybrid("run", read_only, "x", "-n", 2)[0] == 0
    assert "cannot be written" in refused("plan", read_only, "--vram", "8MiB", "--context", 256, "--name", "new")
    assert "cannot be written" in refused("profile", read_only, "--text", text, *QUICKLY)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 20 MiB: room for the demo, not for much more."""
    mounted = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=20m", "none")
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


def test_profiling_on_a_full_disk_leaves_a_directory_that_works(hybrid, refused, demo, tiny_disk, text):
    copy = shutil.copytree(demo, tiny_disk / "demo")
    free = shutil.disk_usage(tiny_disk).free
    (tiny_disk / "ballast").write_bytes(b"\1" * (free - 8192))
    assert "disk" in refused("profile", copy, "--text", text, *QUICKLY)
    assert hybrid("inspect", copy, "--verify")[0] == 0
    assert hybrid("run", copy, "x", "-n", 2)[0] == 0


def start(*arguments):
    command = [sys.executable, "-m", "hybrid.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_profile_leaves_a_directory_that_works(hybrid, demo_copy, text, sent):
    before = hybrid("run", demo_copy, "def ", "-n", 8, "--mode", "exact")[1]
    profile = ("profile", demo_copy, "--text", text, "--tokens", 4000, "--rank", 8, "--steps", 10)
    for seconds in (3, 6, 9, 12, 15):
        running = start(*profile)
        time.sleep(seconds)
        running.send_signal(sent)
        _, err = running.communicate(timeout=120)
        assert "Traceback" not in err
        assert running.returncode in (0, 130, -sent)  # -SIGINT: sent before Python had begun
        assert hybrid("inspect", demo_copy, "--verify")[0] == 0
        assert hybrid("run", demo_copy, "def ", "-n", 8, "--mode", "exact")[1] == before
        assert hybrid("run", demo_copy, "def ", "-n", 8, "--mode", "predicted")[0] == 0
    assert hybrid(*profile)[0] == 0
    assert not list(demo_copy.rglob("*.partial-*"))


def test_a_file_that_shrinks_while_mapped_is_one_clear_line(demo_copy):
    script = """
import os, sys
from pathlib import Path
from hybrid import LLM, SamplingParams
with LLM(sys.argv[1], mode="dense") as llm:
    llm.generate("x", SamplingParams(max_tokens=1, ignore_eos=True))
    os.truncate(sorted((Path(sys.argv[1]) / "neurons").iterdir())[0], 4096)
    if sys.argv[2] == "between":
        llm.generate("x", SamplingParams(max_tokens=1))
    else:
        llm.logits([1, 2, 3])
"""
    for moment in ("between", "during"):
        copy = shutil.copytree(demo_copy, demo_copy.parent / moment)
        done = subprocess.run([sys.executable, "-c", script, copy, moment], capture_output=True, text=True)
        assert done.returncode == 1
        message = done.stderr.strip().splitlines()[-1]
        assert "neurons" in message
        assert "while it was" in message
