"""What the driver is asked, with a driver that is made up: NVML's functions, and nvidia-smi."""

import subprocess
from types import SimpleNamespace

import pytest

from hybrid.runtime import nvml
from hybrid.runtime.nvml import Nvml, free_vram, visible_device


class Driver:
    """As much of `pynvml` as is used, for devices of which some figures may not be told."""

    class NVMLError(Exception):
        pass

    def __init__(self, free=5 << 30, processes=()):
        self.known, self._free, self._processes = {0: "a", "GPU-12": "b"}, free, processes

    def _handle(self, name):
        if name not in self.known:
            raise self.NVMLError(name)
        return self.known[name]

    nvmlDeviceGetHandleByIndex = nvmlDeviceGetHandleByUUID = _handle  # noqa: N815

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        if self._free is None:
            raise self.NVMLError(handle)
        return SimpleNamespace(free=self._free)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        if self._processes is None:
            raise self.NVMLError(handle)
        return self._processes


def running(pid, used):
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


@pytest.mark.parametrize("device", ["0", "GPU-12"])
def test_a_gpu_is_found_by_index_or_uuid(device):
    assert Nvml(Driver(), device).free() == 5 << 30


@pytest.mark.parametrize("device", ["1", "GPU-9"])
def test_a_gpu_that_the_driver_does_not_know(device):
    with pytest.raises(Driver.NVMLError):
        Nvml(Driver(), device)


@pytest.mark.parametrize(
    ("processes", "found"),
    [
        ([running(3, 10), running(7, 20)], 20),
        ([running(3, 10)], None),
        ([running(7, None)], None),  # the driver knows the process and not what it takes
        ([running(7, 0)], None),
        ([], None),
        (None, None),
    ],
)
def test_what_a_process_takes_where_the_driver_says(processes, found):
    assert Nvml(Driver(processes=processes), "0").process(7) == found


def test_what_is_free_may_not_be_told():
    assert Nvml(Driver(free=None), "0").free() is None


@pytest.mark.parametrize(
    ("listed", "device"),
    [
        (None, "0"),
        ("2", "2"),
        ("3,1", "3"),
        (" GPU-8932f937,1", "GPU-8932f937"),
        ("MIG-5", "MIG-5"),
        ("", None),
        ("-1", None),
        ("NoDevFiles", None),
    ],
)
def test_the_first_gpu_is_that_of_cuda(listed, device):
    assert visible_device({} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}) == device


@pytest.mark.parametrize(
    ("answer", "expected"), [("7915\n", 7915 << 20), ("", None), ("[N/A]\n", None), (None, None), ("error", None)]
)
def test_without_nvml_the_drivers_command_is_asked(monkeypatch, answer, expected):
    def run(command, **options):
        assert command[0] == "nvidia-smi"
        assert command[-1] == "--id=4"
        if answer is None:
            raise FileNotFoundError(command[0])
        if answer == "error":
            raise subprocess.CalledProcessError(9, command)
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    monkeypatch.setattr(nvml, "open_nvml", lambda device: None)
    monkeypatch.setattr(nvml.subprocess, "run", run)
    assert free_vram() == expected


def test_what_nvml_tells_is_believed_first(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(nvml, "open_nvml", lambda device: Nvml(Driver(free=123), device))
    assert free_vram() == 123
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert free_vram() is None
