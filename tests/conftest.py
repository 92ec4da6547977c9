"""The shipped model, prepared once per run (or taken from HYBRID_CACHE, where `make demo` left it), and commands."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton: its kernels run under its interpreter then
    os.environ.setdefault("TRITON_INTERPRET", "1")


@dataclass
class PretendedDevice:
    """A device's memory as a test says it is; see `hybrid.runtime.vram.DeviceMemory`.

    allowed: what the allocator may hold, as it was told. returned: how often cached memory was asked for.
    """

    total_bytes: int
    free_bytes: int
    context_bytes: int
    process_bytes: int | None
    growth: int
    rounding: int
    where: str = "GPU memory"
    allowed: int = 0
    returned: int = 0

    def total(self) -> int:
        return self.total_bytes

    def free(self) -> int:
        return self.free_bytes

    def context(self) -> int:
        return self.context_bytes

    def process(self) -> int | None:
        return self.process_bytes

    def allow(self, size: int) -> None:
        self.allowed += size

    def give_back(self) -> None:
        self.returned += 1


Command = Callable[..., tuple[int, str, str]]
SCHEMAS = Path(__file__).resolve().parent.parent / "docs" / "schemas"


def without_other_fields(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of an object that has the fields that it names and no others."""
    return {**schema, "additionalProperties": False} if isinstance(schema.get("required"), list) else schema


@pytest.fixture(scope="session", autouse=True)
def results_as_documented() -> Iterator[Collection[str]]:
    """Whatever a test has a command print as JSON, in this process, meets the schema that the documents have of it.

    Yields the names of the results that were printed so far.
    """
    from hybrid import display

    validators: dict[str, jsonschema_rs.Validator] = {}
    write_json = display.write_json

    def checked(schema: str, value: Mapping[str, Any], indent: int | None = 1) -> None:
        if schema not in validators:
            path = SCHEMAS / f"{schema.removeprefix('hybrid.').replace('/', '-')}.json"
            text = path.read_text(encoding="utf-8")
            validators[schema] = jsonschema_rs.validator_for(json.loads(text, object_hook=without_other_fields))
        validators[schema].validate({"schema": schema, **display.plain(value)})
        write_json(schema, value, indent)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(display, "write_json", checked)
        yield validators.keys()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of this run: the one that HYBRID_CACHE names, else a temporary one, never the user's own."""
    os.environ.setdefault("HYBRID_CACHE", str(tmp_path_factory.mktemp("cache")))
    return Path(os.environ["HYBRID_CACHE"])


@pytest.fixture(scope="session")
def demo(cache_folder: Path) -> Path:
    """The demo's model directory, packed and profiled. Read it only; change a `demo_copy`."""
    from hybrid.stages.demo import demo_directory

    return demo_directory()


@pytest.fixture
def pretended_device() -> Callable[..., PretendedDevice]:
    """`pretended_device(free=..., context=0, ...)`: a device's memory of figures that the test may change."""

    def make(
        free: int = 1 << 40,
        total: int = 1 << 40,
        context: int = 0,
        process: int | None = None,
        growth: int = 0,
        rounding: int = 0,
    ) -> PretendedDevice:
        return PretendedDevice(total, free, context, process, growth, rounding)

    return make


@pytest.fixture
def in_page_cache(tmp_path: Path) -> Callable[[int, int], list[bool]]:
    """`in_page_cache(address, length)`: for each whole page of a file's mapping, whether the page cache has it.

    By mincore(2). Skips the test where there is none, or where a file system keeps what it is asked to drop.
    """
    if sys.platform != "linux":
        pytest.skip("only Linux tells what is in the page cache")
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE

    def ask(address: int, length: int) -> list[bool]:
        first, last = -(-address // page) * page, (address + length) // page * page
        found = (ctypes.c_ubyte * max(0, (last - first) // page))()
        if libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(max(0, last - first)), found):
            raise OSError(ctypes.get_errno(), "mincore")
        return [bool(state & 1) for state in found]

    path = tmp_path / "dropped"
    path.write_bytes(bytes(8 * page))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        view = ctypes.c_char.from_buffer(mapped)
        kept = any(ask(ctypes.addressof(view), 8 * page))
        del view
    path.unlink()
    if kept:
        pytest.skip(f"the file system of {tmp_path} drops no pages")
    return ask


@pytest.fixture
def demo_copy(demo: Path, tmp_path: Path) -> Path:
    """A model directory of one's own."""
    return Path(shutil.copytree(demo, tmp_path / "demo-copy"))


@pytest.fixture(scope="session")
def heldout() -> str:
    """Text that the demo model has never seen."""
    from hybrid.stages.shipped import HELDOUT_TEXT

    lines = HELDOUT_TEXT.read_bytes().splitlines()
    return "".join(json.loads(line)["text"] for line in lines)


@pytest.fixture
def hybrid(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`hybrid(*arguments) -> (exit code, stdout, stderr)`, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from hybrid import cli

        monkeypatch.setattr(sys, "argv", ["hybrid", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0, shown.out, shown.err

    return run


@pytest.fixture
def refused(hybrid: Command) -> Callable[..., str]:
    """`refused(*arguments) -> message` of a command that must fail with one clear error, the last that it says."""

    def run(*arguments: object) -> str:
        code, out, err = hybrid(*arguments)
        assert code == 1
        assert out == ""
        _, found, message = f"\n{err}".partition("\nhybrid: ")
        assert found and "Traceback" not in err
        return f"hybrid: {message}"

    return run


@pytest.fixture(scope="session")
def make_gguf() -> Callable[..., Path]:
    """`make_gguf(checkpoint, path, kind="f16", **metadata) -> Path`: a checkpoint folder as llama.cpp converts it."""
    from checkpoint_to_gguf import convert

    return convert
