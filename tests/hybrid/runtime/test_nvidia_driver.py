"""What NVIDIA's driver tells, by a command and a `proc` that the test writes; and which torch it is told to get."""

import sys

import pytest
import torch

from hybrid.runtime import cuda_torch, nvidia_driver
from hybrid.runtime.cuda_torch import TorchBuild, cuda_hint, why_unused
from hybrid.runtime.nvidia_driver import Gpu, NvidiaDriver, find_driver, torch_command

GIB = 1 << 30
LAPTOP = Gpu("NVIDIA GeForce RTX 4060 Laptop GPU", "8.9", 8188 << 20)
DRIVER = NvidiaDriver((LAPTOP,), "550.54.15", (12, 4), usable=True, hidden=False)
WITHOUT_CUDA = TorchBuild("2.9.0+cpu", None, works=False)


def saying(text, code=0):
    """A command that says so, in the place of nvidia-smi."""
    return (sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})")


@pytest.fixture(autouse=True)
def visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def proc(tmp_path):
    """A root in which the driver's files name one GPU."""
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA A2\nIRQ:   \t\t 44\n")
    return tmp_path


def test_what_the_driver_tells(tmp_path, monkeypatch):
    said = saying("NVIDIA GeForce RTX 4060 Laptop GPU, 550.54.15, 8.9, 8188")
    assert find_driver(tmp_path, said, lambda: 12040) == DRIVER
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = find_driver(tmp_path, said, lambda: 0)
    assert found.hidden and found.cuda is None
    odd = find_driver(tmp_path, saying("NVIDIA GB10, 580.95.05, 12.1, [N/A]"), lambda: 13000)
    assert odd.gpus == (Gpu("NVIDIA GB10", "12.1", None),) and odd.cuda == (13, 0)


@pytest.mark.parametrize("answer", [saying("No devices were found", 6), saying("Failed"), ("no-such-command",)])
def test_without_a_gpu_there_is_no_driver(tmp_path, answer):
    assert find_driver(tmp_path, answer, lambda: 12040) is None


def test_a_gpu_of_the_machine_that_a_container_was_not_given(proc):
    found = find_driver(proc, ("no-such-command",), lambda: 0)
    assert found == NvidiaDriver((Gpu("NVIDIA A2", "", None),), "", None, usable=False, hidden=False)
    assert "docker run --gpus all" in why_unused(found, WITHOUT_CUDA)
    (proc / "dev").mkdir()
    (proc / "dev/nvidiactl").touch()
    assert find_driver(proc, ("no-such-command",), lambda: 12020).usable


@pytest.mark.parametrize(
    ("cuda", "build"),
    [(None, "cu126"), ((12, 2), "cu126"), ((12, 8), "cu128"), ((13, 1), "cu130"), ((11, 8), None)],
)
def test_the_build_of_torch_suits_the_driver(cuda, build):
    command = torch_command(cuda)
    if build is None:
        assert command is None
    else:
        assert command.startswith("pip install --force-reinstall 'torch>=2.6,<2.14' --index-url ")
        assert command.endswith(f"/whl/{build}")


def test_torch_without_cuda_is_told_with_the_command_that_mends_it():
    line = why_unused(DRIVER, WITHOUT_CUDA)
    assert line.startswith(f"the {LAPTOP.name} is not used, as torch 2.9.0+cpu was built without CUDA")
    assert f"{sys.executable} -m pip install --force-reinstall" in line and line.endswith("whl/cu126")


def test_other_reasons_why_torch_does_not_compute_on_a_gpu():
    assert why_unused(DRIVER, TorchBuild("2.9.0", "12.8", works=True)) is None
    newer = why_unused(DRIVER, TorchBuild("2.11.0", "13.0", works=False))
    assert "built for CUDA 13.0, cannot use it by the driver 550.54.15 (it runs CUDA up to 12.4)" in newer
    hidden = NvidiaDriver((LAPTOP,), "550.54.15", (12, 4), usable=True, hidden=True)
    assert "CUDA_VISIBLE_DEVICES" in why_unused(hidden, WITHOUT_CUDA)
    old = NvidiaDriver((LAPTOP,), "470.1", (11, 4), usable=True, hidden=False)
    assert "install driver 525 or newer" in why_unused(old, WITHOUT_CUDA)


def test_the_hint_is_of_this_machine(monkeypatch):
    monkeypatch.setattr(cuda_torch, "find_driver", lambda: None)
    assert cuda_hint() is None
    monkeypatch.setattr(cuda_torch, "find_driver", lambda: NvidiaDriver((LAPTOP,), "550", (12, 4), True, hidden=True))
    assert cuda_hint() is None, "who hides a GPU knows"
    monkeypatch.setattr(cuda_torch, "find_driver", lambda: DRIVER)
    if not torch.cuda.is_available():
        assert "RTX 4060" in cuda_hint()


def test_the_version_of_the_drivers_library_is_a_number():
    assert nvidia_driver.cuda_version() >= 0
