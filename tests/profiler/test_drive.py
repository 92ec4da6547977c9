"""The drive's reader: it reads what it says, leaves nothing behind, and refuses what is no drive."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from profiler import drive
from profiler.artifacts import UserError
from profiler.drive import file_system, measure_drive, past_the_cache, read_blocks, scratch_file

BLOCK = 4096


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_every_block_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    seen: list[tuple[int, bytes]] = []
    preadv = os.preadv

    def watched(descriptor, buffers, offset):
        read = preadv(descriptor, buffers, offset)
        seen.append((offset, bytes(buffers[0])))
        return read

    monkeypatch.setattr(os, "preadv", watched)
    offsets = np.random.default_rng(1).permutation(20) * BLOCK
    with scratch_file(tmp_path, 20 * BLOCK) as descriptor:
        whole = os.pread(descriptor, 20 * BLOCK, 0)
        read, took = read_blocks(descriptor, offsets, BLOCK, depth, seconds=60.0)
    assert read == 20 * BLOCK and took > 0
    assert sorted(offset for offset, _ in seen) == [i * BLOCK for i in range(20)]
    assert all(data == whole[offset : offset + BLOCK] for offset, data in seen)
    assert len(set(whole)) == 256, "what compresses would be read too fast"


def test_reading_ends_with_the_time_after_a_block_for_each_thread(tmp_path: Path) -> None:
    with scratch_file(tmp_path, 64 * BLOCK) as descriptor:
        read, _ = read_blocks(descriptor, np.arange(64) * BLOCK, BLOCK, 4, seconds=0.0)
    assert 4 * BLOCK <= read < 64 * BLOCK


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    with scratch_file(tmp_path, BLOCK) as descriptor, pytest.raises(OSError, match="ended within a block"):
        read_blocks(descriptor, np.array([BLOCK]), BLOCK, 1, seconds=1.0)
    with pytest.raises(UserError, match="cannot measure the drive"), scratch_file(tmp_path, BLOCK) as descriptor:
        read_blocks(descriptor, np.array([BLOCK]), BLOCK, 1, seconds=1.0)


@pytest.mark.parametrize("direct", [True, False])
def test_every_block_and_depth_gets_a_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    if not direct:
        monkeypatch.setattr(drive, "past_the_cache", lambda descriptor: False)
    heard = []
    report = measure_drive(
        tmp_path, 0.01, size=1 << 20, rounds=2, blocks=(BLOCK, 65536), depths=(1, 2), tell=lambda *at: heard.append(at)
    )
    assert [(s.block, s.depth) for s in report.speeds] == [(BLOCK, 1), (BLOCK, 2), (65536, 1), (65536, 2)]
    assert report.size == 1 << 20
    assert heard[-1] == (8, 8)
    assert report.direct == (direct and report.direct)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_direct_reads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments):
        raise OSError(22, "Invalid argument")

    with scratch_file(tmp_path, BLOCK) as descriptor:
        monkeypatch.setattr(os, "preadv", refuse)
        assert not past_the_cache(descriptor)
        monkeypatch.undo()
        assert os.pread(descriptor, 10, 3), "reads at any place work again"


def test_memory_is_no_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "file_system", lambda folder: "tmpfs")
    with pytest.raises(UserError, match=r"lies in memory \(tmpfs\).*--directory.*--no-flash"):
        measure_drive(tmp_path, 0.01)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no tmpfs here")
def test_the_kind_of_a_file_system_is_that_of_its_mount() -> None:
    assert file_system(Path("/dev/shm")) == "tmpfs"
    assert file_system(Path("/proc/self")) == "proc"


def test_a_folder_that_is_missing_or_full_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        measure_drive(tmp_path / "nowhere", 0.01)
    monkeypatch.setattr(drive, "free_bytes", lambda folder: 100 << 20)
    with pytest.raises(UserError, match=r"100\.0 MiB are free.*--no-flash"):
        measure_drive(tmp_path, 0.01)


def test_an_interrupt_leaves_no_file_and_no_thread(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from profiler.drive import measure_drive\n"
        "measure_drive(Path(sys.argv[1]), 600, size=1 << 20, tell=lambda *at: print(at, flush=True), rounds=100)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT or "KeyboardInterrupt" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from profiler.drive import scratch_file\n"
        "with scratch_file(Path(sys.argv[1]), 4096): print('made', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.kill()
    process.wait(timeout=60)
    assert list(tmp_path.iterdir()) == []
