"""How commands that generate open a model: the options that they share, with progress and notes on stderr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hybrid import display
from hybrid.cli_options import (
    ContextOption,
    DeviceOption,
    KvFormat,
    KvOption,
    ModeOption,
    NoMmapOption,
    NoOverlapOption,
    PlanOption,
    ProfileOption,
    RamOption,
    SlowdownOption,
    ThreadsOption,
    ThresholdsOption,
    VramOption,
    device_name,
    parse_slowdown,
)
from hybrid.exits import explain_bus_errors
from profiler.artifacts import parse_size

PLACED_AT_ONCE = 1 << 30  # bytes that are on a GPU before a bar of progress could be read

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Opening:
    """What `run`, `chat` and `serve` can be told about how a model is opened."""

    mode: ModeOption = None
    profile: ProfileOption = "default"
    thresholds: ThresholdsOption = "default"
    plan: PlanOption = None
    vram: VramOption = None
    ram: RamOption = None
    device: DeviceOption = None
    slowdown: SlowdownOption = None
    context: ContextOption = None
    kv_format: KvOption = KvFormat.f16
    threads: ThreadsOption = None
    no_mmap: NoMmapOption = False
    no_overlap: NoOverlapOption = False

    def open(self, opener: Callable[..., Opened], model: str, **others: Any) -> Opened:
        """What `opener`, which is `LLM` or `open_engine`, makes of the options; others: what else it takes.

        Raises:
            UserError: an option makes no sense, or the model cannot be opened.
        """
        explain_bus_errors()
        with display.long_progress("placing on the gpu", PLACED_AT_ONCE) as tell:
            return opener(
                model,
                mode=None if self.mode is None else self.mode.value,
                profile=self.profile,
                thresholds=self.thresholds,
                plan=self.plan,
                vram=None if self.vram is None else parse_size(self.vram),
                ram=None if self.ram is None else parse_size(self.ram),
                device=device_name(self.device),
                slowdown=parse_slowdown(self.slowdown),
                context=self.context,
                kv_format=self.kv_format.value,
                threads=self.threads,
                mmap=not self.no_mmap,
                overlap=not self.no_overlap,
                note=lambda line: display.note(f"warning: {line}"),
                inform=display.note,
                tell=tell,
                **others,
            )
