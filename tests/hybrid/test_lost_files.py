"""Files and folders that go, or shrink, while a command uses them: one line that names them, and exit code 1."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from hybrid.stages import pack as pack_stage
from hybrid.stages import profile_checkpoint


def test_a_folder_that_is_removed_underneath(refused, llama_checkpoint, tmp_path, monkeypatch):
    def write_and_lose(path, data):
        shutil.rmtree(path.parent)

    monkeypatch.setattr(pack_stage, "write_atomic", write_and_lose)
    said = refused("pack", llama_checkpoint, tmp_path / "made")
    assert "made.partial-build" in said and "No such file or directory" in said
    assert not (tmp_path / "made").exists()


def test_a_directory_that_is_removed_while_it_is_profiled(refused, demo_copy, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 200)
    monkeypatch.setattr(profile_checkpoint, "write_json", lambda *_: shutil.rmtree(demo_copy))
    assert "No such file or directory" in refused("profile", demo_copy, "--text", text).splitlines()[-1]


PACK_WHILE_CUT = """
import os, sys
from hybrid import cli
from hybrid.checkpoint.reader import Checkpoint
source, made = sys.argv[1:]
opened = Checkpoint.open
def cut(path, *others, **more):
    found = opened(path, *others, **more)
    os.truncate(path / "pytorch_model.bin", 5000)
    return found
Checkpoint.open = staticmethod(cut)
sys.argv = ["hybrid", "pack", source, made]
cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the mappings of a process")
def test_a_checkpoint_that_shrinks_while_torch_has_it_mapped(llama_checkpoint, tmp_path):
    source = shutil.copytree(llama_checkpoint, tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    command = [sys.executable, "-c", PACK_WHILE_CUT, str(source), str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr == (
        f"hybrid: {source / 'pytorch_model.bin'} shrank or became unreadable while it was mapped; "
        "restore the file or make it anew\n"
    )
    assert not (tmp_path / "made").exists()


def test_a_plan_of_other_sizes_is_refused(hybrid, refused, demo_copy):
    hybrid("plan", demo_copy, "--vram", "7MiB", "--second-device", "cpu")
    path = demo_copy / "plans" / "default.json"
    plan = json.loads(path.read_text())
    plan["layers"].append(plan["layers"][-1])
    path.write_text(json.dumps(plan))
    for command in (("run", demo_copy, "def f("), ("simulate", demo_copy)):
        assert "7 layers of" in refused(*command, "--plan", "default")
