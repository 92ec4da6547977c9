"""Run as `python compiling.py CAPABILITY < source`: compiles what calls of device operators launch, without a GPU.

The source is Python; its tensors are on the CPU. Kernels are specialised for its arguments as they are on a GPU of that
compute capability, compiled by Triton and its assembler, and not launched. Prints JSON, an object for each kernel and
specialisation: see `Compiled` in conftest.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

compiled: dict[tuple[str, str], dict[str, Any]] = {}


class NoDevice:
    """A driver of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Registers of a thread, and bytes that did not fit them."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"Used (\d+) registers", said)[1]), int(re.search(r"(\d+) bytes spill stores", said)[1])


def compile_only(function: JITFunction, grid: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> None:
        kernel = function.run(*arguments, grid=grid, warmup=True, **options)
        ptx = kernel.asm["ptx"]
        if (function.__name__, ptx) in compiled:
            return
        registers, spilled = assembled(ptx, driver.active.get_current_target().arch)
        loads = re.findall(r"ld\.global\S*?\.(?:v(\d)\.)?b(\d+)", ptx)
        compiled[function.__name__, ptx] = {
            "name": function.__name__,
            "registers": registers,
            "spilled": spilled,
            "shared": kernel.metadata.shared,
            "widest_load": max((int(count or 1) * int(bits) // 8 for count, bits in loads), default=0),
        }

    return call


if __name__ == "__main__":
    driver.set_active(NoDevice(int(sys.argv[1])))
    JITFunction.__getitem__ = compile_only
    exec(compile(sys.stdin.read(), "<source>", "exec"))
    print(json.dumps(list(compiled.values())))
