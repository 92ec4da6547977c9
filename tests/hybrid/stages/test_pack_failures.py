"""`hybrid pack` where it must not write, is killed, is run twice, or meets a full disk: all or nothing."""

import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import profiler.artifacts
from hybrid.stages.inspect import inspect
from hybrid.stages.pack import pack
from hybrid.store.manifest import Manifest
from profiler.artifacts import UserError

FORK = multiprocessing.get_context("fork")


def in_child(function, *arguments):
    """Run in a forked process, single-threaded since a pool of threads does not survive a fork."""

    def run():
        torch.set_num_threads(1)
        function(*arguments)

    child = FORK.Process(target=run)
    child.start()
    return child


def names(path):
    return sorted(p.name for p in path.iterdir())


@pytest.fixture
def tmpfs(tmp_path):
    """A file system of 4 MiB of its own; skips where mounting is not permitted."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.parametrize("where", ["same", "inside", "around", "link"])
def test_checkpoint_and_destination_may_not_contain_each_other(llama_checkpoint, tmp_path, where):
    source = shutil.copytree(llama_checkpoint, tmp_path / "outer" / "source")
    (tmp_path / "link").symlink_to(source)
    places = {"same": source, "inside": source / "x", "around": source.parent, "link": tmp_path / "link" / "x"}
    before = names(source)
    with pytest.raises(UserError, match="one inside the other"):
        pack(source, places[where])
    assert names(source) == before


def test_a_destination_that_is_not_empty_is_kept(llama_checkpoint, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty; remove it or choose another name"):
        pack(llama_checkpoint, tmp_path / "model")
    with pytest.raises(UserError, match="exists and is not empty"):
        pack(llama_checkpoint, tmp_path / "model" / "precious")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["precious"]


def test_a_destination_filled_while_packing_is_kept(llama_checkpoint, tmp_path):
    def fill(done, total):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "precious").write_text("x")

    with pytest.raises(UserError, match="exists and is not empty"):
        pack(llama_checkpoint, tmp_path / "model", progress=fill)
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["precious"]


def test_a_parent_that_does_not_exist(llama_checkpoint, tmp_path):
    with pytest.raises(UserError, match="mkdir -p"):
        pack(llama_checkpoint, tmp_path / "a" / "b")


def test_a_parent_that_cannot_be_written(llama_checkpoint, tmpfs):
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
    with pytest.raises(UserError, match="cannot be written; choose a folder of your own"):
        pack(llama_checkpoint, tmpfs / "model")


def test_a_disk_too_small_is_noticed_before_writing(llama_checkpoint, tmpfs):
    (tmpfs / "filler").write_bytes(bytes(3 << 20))
    with pytest.raises(UserError, match=r"pack needs .* are free: .* are missing"):
        pack(llama_checkpoint, tmpfs / "model")
    assert names(tmpfs) == ["filler"]


def test_remains_of_a_killed_run_do_not_count_against_the_free_space(llama_checkpoint, tmpfs):
    (tmpfs / "model.partial-build").mkdir()
    (tmpfs / "model.partial-build" / "remains").write_bytes(bytes(3 << 20))
    assert pack(llama_checkpoint, tmpfs / "model").notes
    assert names(tmpfs) == ["model"]


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_and_says_how_much_is_missing(llama_checkpoint, tmpfs):
    def fill(done, total):
        with (tmpfs / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))

    with pytest.raises(UserError, match=r"pack needs .* KiB are missing|pack needs .* MiB are missing"):
        pack(llama_checkpoint, tmpfs / "model", progress=fill)
    assert names(tmpfs) == ["filler"]


def test_an_interrupt_leaves_nothing(llama_checkpoint, tmp_path):
    def interrupt(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(llama_checkpoint, tmp_path / "model", progress=interrupt)
    assert names(tmp_path) == []


def pack_and_die(source, destination, moment):
    """Pack, and be killed by the kernel at a moment."""

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def before(owner, name):
        setattr(owner, name, die)

    def after(owner, name):
        original = getattr(owner, name)
        setattr(owner, name, lambda *arguments: (original(*arguments), die()))

    if isinstance(moment, float):
        pack(source, destination, progress=lambda done, total: die() if done >= moment * total else None)
    elif moment == "before the manifest":
        before(Manifest, "write")
    elif moment == "after the manifest":
        after(Manifest, "write")
    else:
        original = Path.replace

        def replace(self, target):
            if self.is_dir():
                if moment == "after the rename":
                    original(self, target)
                die()
            return original(self, target)

        Path.replace = replace
    pack(source, destination)


@pytest.mark.parametrize(
    "moment",
    [0.0, 0.3, 0.7, 1.0, "before the manifest", "after the manifest", "before the rename", "after the rename"],
)
def test_a_kill_leaves_nothing_or_everything_and_the_next_run_cleans_up(llama_checkpoint, tmp_path, moment):
    child = in_child(pack_and_die, llama_checkpoint, tmp_path / "model", moment)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    if moment == "after the rename":
        assert names(tmp_path) == ["model"]
    else:
        assert names(tmp_path) == ["model.partial-build"]
        report = pack(llama_checkpoint, tmp_path / "model")
        assert report.notes == (f"removed {tmp_path / 'model.partial-build'}, left by a run that was killed",)
    assert names(tmp_path) == ["model"]
    assert inspect(tmp_path / "model", verify=True).verified
    assert not list((tmp_path / "model").rglob("*partial*"))


def test_of_two_packs_of_one_directory_the_second_is_refused_and_the_first_undisturbed(llama_checkpoint, tmp_path):
    reached, proceed = FORK.Event(), FORK.Event()

    def wait(done, total):
        reached.set()
        assert proceed.wait(60)

    child = in_child(pack, llama_checkpoint, tmp_path / "model", "auto", wait)
    assert reached.wait(60)
    for _ in range(2):
        with pytest.raises(UserError, match=r"another process is writing .*model\.partial-build; wait until it ends"):
            pack(llama_checkpoint, tmp_path / "model")
    pack(llama_checkpoint, tmp_path / "other")
    proceed.set()
    child.join()
    assert child.exitcode == 0
    assert names(tmp_path) == ["model", "other"]
    assert inspect(tmp_path / "model", verify=True).verified


def test_a_link_in_the_place_of_the_partial_is_not_followed(llama_checkpoint, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (tmp_path / "model.partial-build").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is a link"):
        pack(llama_checkpoint, tmp_path / "model")
    assert names(tmp_path / "precious") == ["file"]


@pytest.mark.parametrize("name", ["tokenizer.model", "generation_config.json"])
def test_a_tokenizer_file_that_is_no_file(llama_checkpoint, tmp_path, name):
    source = shutil.copytree(llama_checkpoint, tmp_path / "source")
    (source / name).unlink()
    (source / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{name} is not a file"):
        pack(source, tmp_path / "model")


def test_a_config_that_is_a_device(llama_checkpoint, tmp_path):
    source = shutil.copytree(llama_checkpoint, tmp_path / "source")
    (source / "config.json").unlink()
    (source / "config.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a file"):
        pack(source, tmp_path / "model")


def test_needed_space_is_what_is_written(llama_checkpoint, tmp_path, monkeypatch):
    asked = []
    real = profiler.artifacts.require_free_space
    monkeypatch.setattr("hybrid.stages.pack.require_free_space", lambda p, n, w: (asked.append(n), real(p, n, w)))
    report = pack(llama_checkpoint, tmp_path / "model")
    assert asked[0] - (2 << 20) <= report.bytes <= asked[0]
