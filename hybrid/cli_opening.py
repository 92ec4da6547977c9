"""How commands that generate open a model: from the options that they share, with progress and notes on stderr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hybrid import display
from hybrid.cli_options import Device, KvFormat, Mode, device_name, parse_slowdown
from profiler.artifacts import parse_size

PLACED_AT_ONCE = 1 << 30  # bytes that are on a GPU before a bar of progress could be read

Opened = TypeVar("Opened")


def opened(
    opener: Callable[..., Opened],
    model: str,
    *,
    mode: Mode | None,
    vram: str | None,
    ram: str | None,
    device: Device | None,
    slowdown: list[str] | None,
    kv_format: KvFormat,
    no_mmap: bool,
    no_overlap: bool,
    **others: Any,
) -> Opened:
    """What `opener`, which is `LLM` or `open_engine`, makes of options as commands have them.

    others: what is called the same there and needs no conversion.

    Raises:
        UserError: an option makes no sense, or the model cannot be opened.
    """
    with display.long_progress("placing on the gpu", PLACED_AT_ONCE) as tell:
        return opener(
            model,
            mode=None if mode is None else mode.value,
            vram=None if vram is None else parse_size(vram),
            ram=None if ram is None else parse_size(ram),
            device=device_name(device),
            slowdown=parse_slowdown(slowdown),
            kv_format=kv_format.value,
            mmap=not no_mmap,
            overlap=not no_overlap,
            note=lambda line: display.note(f"warning: {line}"),
            inform=display.note,
            tell=tell,
            **others,
        )
