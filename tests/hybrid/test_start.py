"""The start of a model: what opening touches, and the same model read into memory instead (`--no-mmap`)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

from hybrid import LLM, SamplingParams, cli
from hybrid.runtime import loader
from hybrid.stages.opening import open_engine
from hybrid.store.directory import ModelDirectory
from hybrid.store.manifest import DENSE_FILE, layer_file
from hybrid.store.stored import HeldFile, MappedFile
from profiler.artifacts import UserError

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
PREDICTORS = "predictors/default.safetensors"
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident of a mapping")


@pytest.fixture
def model(demo, tmp_path):
    """The shipped model in a folder of its own: nothing else has its files mapped, and they may be cut."""
    return Path(shutil.copytree(demo, tmp_path.resolve() / "model"))


def mapped(model):
    """(bytes mapped, bytes resident) of the model's files in this process."""
    maps = [m for m in psutil.Process().memory_maps(grouped=False) if Path(m.path).is_relative_to(model)]
    return sum(m.size for m in maps), sum(m.rss for m in maps)


def weights(model):
    return sum(path.stat().st_size for path in [model / DENSE_FILE, *(model / "neurons").iterdir()])


@linux
@pytest.mark.parametrize("mode", ["predicted", "exact", "dense"])
def test_opening_maps_all_and_touches_little(model, mode):
    with open_engine(model, mode=mode) as engine:
        size, resident = mapped(model)
        assert size >= weights(model)
        assert resident < 0.15 * size
        engine.hidden_states([1])
        assert mapped(model)[1] > 2 * resident, "a token does touch the model"


@linux
def test_room_for_keys_and_values_costs_nothing_until_it_is_used(demo):
    before = psutil.Process().memory_info().rss
    with open_engine(demo, mode="exact", max_sequences=64) as engine:
        pages = [page for layer in engine.decoder.layers for page in (layer.pages.keys, layer.pages.values)]
        room = sum(page.nbytes for page in pages)
        assert room > 64 << 20
        assert psutil.Process().memory_info().rss - before < room / 4
        assert not any(page[:: len(page) - 1].any() for page in pages), "pages are zeros"
        assert all(page.data_ptr() % 64 == 0 for page in pages)


@linux
@pytest.mark.parametrize("mode", ["predicted", "exact", "dense"])
def test_read_into_memory_it_says_the_same_and_needs_its_files_no_more(model, mode):
    with LLM(model, mode=mode, max_sequences=1) as llm:
        expected = llm.generate("def main(", PARAMS)[0].token_ids
    with LLM(model, mode=mode, max_sequences=1, mmap=False) as llm:
        assert mapped(model) == (0, 0)
        for path in [model / DENSE_FILE, model / PREDICTORS, *(model / "neurons").iterdir()]:
            os.truncate(path, 0)
        assert llm.generate("def main(", PARAMS)[0].token_ids == expected


@pytest.mark.parametrize("family", ["llama_directory", "opt_directory"])
def test_held_tensors_are_the_mapped_ones(family, request):
    path = request.getfixturevalue(family)
    with ModelDirectory.open(path) as directory:
        for name, layout in directory.manifest.layouts.items():
            held, in_place = HeldFile(path / name, layout), MappedFile(path / name, layout)
            assert not any(held.tensor(entry.name, keep=False).any() for entry in layout.entries), "nothing is read yet"
            assert sum(entry.nbytes for entry in layout.entries) == layout.size - len(layout.header)
            for entry in layout.entries:
                one, other = held.tensor(entry.name), in_place.tensor(entry.name)
                assert one.shape == other.shape == entry.shape
                assert one.dtype == other.dtype
                assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", [DENSE_FILE, layer_file(1), PREDICTORS])
def test_a_file_that_was_cut_is_not_opened(model, name, mmap):
    os.truncate(model / name, (model / name).stat().st_size - 64)
    with pytest.raises(UserError, match=f"{Path(name).name} is damaged"):
        LLM(model, mmap=mmap)


@pytest.mark.parametrize("name", [DENSE_FILE, layer_file(1), PREDICTORS])
def test_a_file_that_is_cut_while_it_is_used_in_place_is_refused(model, name):
    with LLM(model, mode="predicted", max_sequences=1) as llm:
        os.truncate(model / name, (model / name).stat().st_size - 64)
        with pytest.raises(UserError, match=f"{Path(name).name} was changed while it was in use"):
            llm.generate("def ", PARAMS)


def test_a_file_that_was_replaced_is_used_as_it_was_opened(model):
    with LLM(model, mode="predicted", max_sequences=1) as llm:
        expected = llm.generate("def ", PARAMS)[0].token_ids
        for name in (layer_file(1), PREDICTORS):
            beside = model / "beside"
            beside.write_bytes(b"another one")
            beside.replace(model / name)
        assert llm.generate("def ", PARAMS)[0].token_ids == expected


def test_a_file_that_is_cut_while_it_is_read_is_refused(model, monkeypatch):
    read = os.preadv

    def cut(descriptor, buffers, offset):
        os.truncate(model / DENSE_FILE, 8192)
        return read(descriptor, buffers, offset)

    with ModelDirectory.open(model) as directory, monkeypatch.context() as patched:
        patched.setattr(os, "preadv", cut)
        directory.hold()
        with pytest.raises(UserError, match="ended before its time"):
            directory.matrix("embed.weight")


def test_predictors_are_guarded(model):
    script = """
import os, sys
from hybrid.stages.opening import open_engine
engine = open_engine(sys.argv[1], mode="predicted")
os.truncate(sys.argv[2], 4096)
print("cut", flush=True)
engine.hidden_states([1])  # does not look at the files' sizes
print("not reached", flush=True)
"""
    path = model / PREDICTORS
    done = subprocess.run([sys.executable, "-c", script, model, path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "cut\n")
    assert done.stderr.startswith(f"hybrid: {path} shrank")


def test_too_little_memory_is_refused_before_anything_is_read(demo, monkeypatch):
    needed = weights(demo)
    monkeypatch.setattr(loader, "available_memory", lambda: needed - 1)
    monkeypatch.setattr(ModelDirectory, "hold", lambda self: pytest.fail("nothing is to be read"))
    with pytest.raises(UserError, match=r"--no-mmap reads all of .* into memory, .* MiB are free; leave --no-mmap"):
        open_engine(demo, mode="exact", mmap=False)
    monkeypatch.setattr(loader, "available_memory", lambda: needed)
    with pytest.raises(UserError, match="--no-mmap"):
        open_engine(demo, mode="predicted", mmap=False)  # the predictors do not fit
    with open_engine(demo, mode="predicted"):
        pass


def test_run_takes_no_mmap(monkeypatch):
    opened = []
    whole = loader.hold
    monkeypatch.setattr(loader, "hold", lambda *arguments: opened.append(1) or whole(*arguments))
    run = ["run", "demo", "def main(", "-n", "5"]
    plain, read = (CliRunner().invoke(cli.app, [*run, *option]) for option in ([], ["--no-mmap"]))
    assert plain.exit_code == read.exit_code == 0
    assert plain.stdout == read.stdout
    assert len(opened) == 1
