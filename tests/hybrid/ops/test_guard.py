"""Mapped files that shrink: one clear line and exit status 1 instead of a crash. In processes of their own."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.ops import _native

PREAMBLE = """
import ctypes, faulthandler, mmap, os, signal, sys
from hybrid.ops import _native

path = sys.argv[1]
file = open(path, "r+b")
memory = mmap.mmap(file.fileno(), 0)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
"""
SIZE = 1 << 16


def run(tmp_path: Path, script: str) -> "subprocess.CompletedProcess[str]":
    path = tmp_path / "rows.safetensors"
    path.write_bytes(bytes(SIZE))
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + script, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )


def expected_line(tmp_path: Path) -> str:
    path = tmp_path / "rows.safetensors"
    return f"hybrid: {path} shrank or became unreadable while it was mapped; restore the file or pack the model again\n"


def test_a_guarded_file_that_shrinks_ends_the_process_with_one_line(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
_native.guard_mapping(address, len(memory), path)
assert memory[-1] == 0
file.truncate(4096)
print("before", flush=True)
memory[-1]
print("after", flush=True)
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "before\n", expected_line(tmp_path))


def test_a_worker_thread_that_meets_it_ends_the_process_too(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
_native.guard_mapping(address, len(memory), path)
pool = _native.Pool(3)
x, y, counts = (ctypes.c_float * 8)(*range(1, 9)), (ctypes.c_float * 8)(), (ctypes.c_int64 * 2)()
call = lambda: _native.sparse_ffn(
    pool, address, 48, len(memory) // 48, 8, _native.F16, True, _native.RELU, 0.0, False, 0,
    ctypes.addressof(x), 1, 0, 0, ctypes.addressof(y), ctypes.addressof(counts),
)
call()
file.truncate(0)
call()
""",
    )
    assert (done.returncode, done.stderr) == (1, expected_line(tmp_path))


@pytest.mark.parametrize("ended", [False, True])
def test_faults_elsewhere_keep_their_meaning(tmp_path: Path, ended: bool) -> None:
    guard = "_native.unguard_mapping(_native.guard_mapping(address, len(memory), path))"
    elsewhere = "_native.guard_mapping(address + len(memory), 4096, 'another')"
    done = run(tmp_path, f"{guard if ended else elsewhere}\nfile.truncate(0)\nmemory[-1]\n")
    assert done.returncode == -signal.SIGBUS
    assert done.stderr == ""


def test_the_handler_that_was_there_before_still_runs(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
faulthandler.enable()
_native.guard_mapping(address + len(memory), 4096, "another")
file.truncate(0)
memory[-1]
""",
    )
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


def test_a_signal_that_someone_sends_is_no_fault(tmp_path: Path) -> None:
    send = "_native.guard_mapping(address, len(memory), path)\nos.kill(os.getpid(), signal.SIGBUS)\nprint('alive')"
    done = run(tmp_path, send)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    ignored = run(
        tmp_path,
        """
signal.signal(signal.SIGBUS, signal.SIG_IGN)
_native.guard_mapping(address, len(memory), path)
os.kill(os.getpid(), signal.SIGBUS)
print("alive", flush=True)
file.truncate(0)
memory[-1]
""",
    )
    assert (ignored.returncode, ignored.stdout, ignored.stderr) == (1, "alive\n", expected_line(tmp_path))


def test_a_very_long_path_is_cut(tmp_path: Path) -> None:
    done = run(tmp_path, "_native.guard_mapping(address, len(memory), 'x' * 5000)\nfile.truncate(0)\nmemory[-1]")
    assert done.returncode == 1
    assert done.stderr.startswith("hybrid: " + "x" * 1000)
    assert done.stderr.endswith("pack the model again\n")


def test_handles() -> None:
    first = _native.guard_mapping(1 << 40, 4096, "first")
    second = _native.guard_mapping(1 << 41, 4096, "second")
    _native.unguard_mapping(first)
    with pytest.raises(ValueError, match="not in force"):
        _native.unguard_mapping(first)
    third = _native.guard_mapping(1 << 40, 4096, "third")
    assert len({first, second, third}) == 3
    with pytest.raises(ValueError, match="not in force"):
        _native.unguard_mapping(first)
    _native.unguard_mapping(second)
    _native.unguard_mapping(third)


def test_no_more_guards_than_there_are_slots() -> None:
    handles = []
    with pytest.raises(RuntimeError, match="mapped already"):
        for i in range(5000):
            handles.append(_native.guard_mapping((i + 1) << 40, 4096, "many"))
    assert len(handles) >= 4000
    for handle in handles:
        _native.unguard_mapping(handle)


@pytest.mark.parametrize(("address", "length"), [(0, 4096), (4096, 0), ((1 << 64) - 4096, 1 << 20)])
def test_ranges_that_make_no_sense(address: int, length: int) -> None:
    with pytest.raises(ValueError, match="empty or wraps"):
        _native.guard_mapping(address, length, "nowhere")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the mappings of a process")
def test_a_program_may_ask_for_that_line_whoever_mapped_the_file(tmp_path: Path) -> None:
    mended = expected_line(tmp_path).replace("pack the model again", "make it anew")
    done = run(tmp_path, "_native.explain_bus_errors()\nfile.truncate(4096)\nprint('before', flush=True)\nmemory[-1]")
    assert (done.returncode, done.stdout, done.stderr) == (1, "before\n", mended)
    torn = run(
        tmp_path,
        "import threading\n_native.explain_bus_errors()\nfile.truncate(0)\n"
        "[threading.Thread(target=memory.__getitem__, args=(-1,)).start() for _ in range(4)]\nmemory[0]",
    )
    assert (torn.returncode, torn.stderr) == (1, mended)
    sent = run(tmp_path, "_native.explain_bus_errors()\nos.kill(os.getpid(), signal.SIGBUS)\nprint('alive')")
    assert (sent.returncode, sent.stderr) == (-signal.SIGBUS, "")
