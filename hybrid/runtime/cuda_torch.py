"""Why torch computes on no GPU although NVIDIA's driver runs one here, and the command that mends it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from hybrid.runtime.nvidia_driver import NvidiaDriver, find_driver, torch_command


@dataclass(frozen=True)
class TorchBuild:
    """What torch is. cuda: the version that it was built for, None for a build without; works: it can use a GPU now."""

    version: str
    cuda: str | None
    works: bool

    @staticmethod
    def here() -> TorchBuild:
        """Asks torch."""
        return TorchBuild(torch.__version__, torch.version.cuda, torch.cuda.is_available())


def cuda_hint() -> str | None:
    """What a user should do for the GPU to be used; None where there is none, torch sees it, or it is hidden."""
    driver = find_driver()
    return None if driver is None or driver.hidden else why_unused(driver, TorchBuild.here())


def why_unused(driver: NvidiaDriver, build: TorchBuild) -> str | None:
    """What stands between torch and the driver's GPUs, with the command that mends it; None where nothing does."""
    if build.works:
        return None
    names = " and ".join(dict.fromkeys(gpu.name for gpu in driver.gpus))
    if not driver.usable:
        return f"the machine has an {names}, but this process is not given it; a container needs: docker run --gpus all"
    if driver.hidden:
        return f"the {names} is hidden by CUDA_VISIBLE_DEVICES; unset it for the GPU to be used"
    command = torch_command(driver.cuda)
    if command is None:
        assert driver.cuda is not None, "a driver that says nothing is given a chance"
        version = ".".join(map(str, driver.cuda))
        return f"the {names} has a driver for CUDA {version}, older than any torch needs: install driver 525 or newer"
    command = command.replace("pip", f"{sys.executable} -m pip", 1)
    if build.cuda is None:
        return f"the {names} is not used, as torch {build.version} was built without CUDA; install one with: {command}"
    version = "" if driver.cuda is None else f" (it runs CUDA up to {driver.cuda[0]}.{driver.cuda[1]})"
    return (
        f"the {names} is not used: torch {build.version}, built for CUDA {build.cuda}, cannot use it by the driver "
        f"{driver.version or 'here'}{version}; update the driver, or install a torch that suits it with: {command}"
    )
