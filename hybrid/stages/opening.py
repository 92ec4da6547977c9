"""Opens a model by what a user names: a directory or `demo`, a plan, a mode, a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from hybrid.runtime.choices import check_kv_format
from hybrid.runtime.cuda_memory import device_memory
from hybrid.runtime.cuda_torch import cuda_hint
from hybrid.runtime.engine import Engine
from hybrid.runtime.loader import Tell
from hybrid.runtime.options import PACE, EngineOptions, PrefillRows
from hybrid.runtime.sizes import page_bytes
from hybrid.runtime.this_machine import SecondDevice
from hybrid.runtime.vram import DeviceMemory
from hybrid.stages.advice import faster_line
from hybrid.stages.automatic import (
    Choice,
    Device,
    Note,
    Use,
    automatic_plan,
    choose_plan,
    host_choice,
    plan_within,
)
from hybrid.stages.demo import demo_directory
from hybrid.stages.finding import choose_mode, find_model
from hybrid.stages.model_predictors import find_predictors
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.directory import ModelDirectory
from placement.plan import Plan
from profiler.artifacts import UserError


def resolve(path: str | Path) -> Path:
    """The model directory that a name or a path means; `demo` is prepared on first use."""
    return find_model(path) or demo_directory()


def open_engine(
    path: str | Path,
    *,
    mode: str | None = None,
    plan: str | Path | Plan | None = None,
    device: SecondDevice | None = None,
    context: int | None = None,
    max_sequences: int = 1,
    kv_format: str = "f16",
    kv_memory: int | None = None,
    pace: float = PACE,
    reuse_prefixes: bool = True,
    threads: int | None = None,
    mmap: bool = True,
    profile: str = "default",
    thresholds: str = "default",
    cutoffs: tuple[float, ...] | None = None,
    prefill_tokens: int | None = None,
    prefill_rows: PrefillRows = "auto",
    slowdown: Mapping[str, float] | None = None,
    cores: Mapping[str, tuple[int, ...]] | None = None,
    overlap: bool = True,
    prefetch: bool = True,
    tally: bool = False,
    vram: int | None = None,
    ram: int | None = None,
    automatic: bool = False,
    memory: DeviceMemory | None = None,
    note: Note = lambda line: None,
    inform: Note = lambda line: None,
    tell: Tell | None = None,
) -> Engine:
    """Open an engine; see `hybrid.LLM` for the arguments.

    cutoffs: of mode threshold, in the place of those on disk. reuse_prefixes, prefill_tokens, prefill_rows, slowdown,
    cores, overlap, prefetch and tally are those of `EngineOptions`. automatic: where neither a plan nor a budget is
    named, have one chosen (`automatic_plan`), and not the CPU alone. memory: of the second device; None asks it. note:
    hears what users should know of a choice. inform: hears, in one line, how the model was opened, and of what would
    make it faster. tell: hears of `(done, total)` bytes that are copied to the second device.

    Raises:
        UserError: what was asked for cannot be opened; the message says how to mend it.
    """
    directory = ModelDirectory.open(resolve(path))
    try:
        predictors = find_predictors(directory, profile)
        chosen = choose_mode(mode, directory, predictors)
        found, line = choose_plan(directory, plan, vram, ram), ""
        check_kv_format(kv_format)
        pages = None if kv_memory is None else kv_memory // page_bytes(directory.spec, kv_format)
        if found is None and device == "cuda" and vram is None and not automatic:
            raise UserError(f"a GPU needs a plan that says what it holds: hybrid plan {directory.path} --vram SIZE")
        if found is None and (automatic or vram or ram is not None):
            use = Use(chosen, context, max_sequences, kv_format, profile, thresholds, pages)
            choice = _choose(directory, use, device, memory, vram, ram, note)
            found = choice.plan
            if not mmap and found is not None and found.total_bytes("flash"):
                raise UserError("--ram leaves neurons on the drive, and --no-mmap reads all of them; give one of them")
            line = f"{path}: {chosen} mode, {choice.how}{faster_line(directory, mode, chosen, thresholds)}"
        loss = None
        if chosen == "threshold" and cutoffs is None:
            calibrated = require_thresholds(directory, thresholds)
            cutoffs, loss = calibrated.cutoffs, calibrated.loss
        options = EngineOptions(
            mode=chosen,
            plan=found,
            second_device=device if found is not None else None,
            predictors=predictors if chosen == "predicted" else None,
            context=context,
            max_sequences=max_sequences,
            kv_format=kv_format,
            kv_pages=pages,
            pace=pace,
            reuse_prefixes=reuse_prefixes,
            threads=threads,
            mmap=mmap,
            prefill_tokens=prefill_tokens,
            prefill_rows=prefill_rows,
            cutoffs=cutoffs,
            loss=loss,
            slowdown=slowdown or {},
            cores=cores or {},
            overlap=overlap,
            prefetch=prefetch,
            tally=tally,
            memory=memory,
        )
        if line:
            inform(line)
        return Engine(directory, options, tell)
    except BaseException:
        directory.close()
        raise


def _choose(
    directory: ModelDirectory,
    use: Use,
    device: SecondDevice | None,
    memory: DeviceMemory | None,
    vram: int | None,
    ram: int | None,
    note: Note,
) -> Choice:
    """What is chosen where no plan is named, for budgets or for what is free.

    Raises:
        UserError: no such device, or no plan can be made that was asked for.
    """
    if vram == 0:
        return host_choice(directory, use, ram)
    if device is None and vram is None and not (torch.cuda.is_available() or memory):
        hint = cuda_hint()
        if hint is not None:
            note(f"computed on the CPU alone: {hint}")
        return host_choice(directory, use, ram)
    try:
        second = Device(device or "cuda", memory or device_memory(device))
    except UserError as error:
        if device is not None or vram is not None:
            raise
        note(f"computed on the CPU alone: {error}")
        return host_choice(directory, use, ram)
    if vram:
        return plan_within(directory, use, second, vram, ram)
    return automatic_plan(directory, use, second, note, ram)
