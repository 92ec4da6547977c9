"""How a prompt's rows in host memory are computed here: by the machine's figures, or as the options force it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from hybrid.runtime.options import EngineOptions
from hybrid.runtime.scheduler import SplitLayer
from hybrid.runtime.sizes import model_sizes, stream_rows
from hybrid.runtime.streaming import RowStream
from hybrid.runtime.this_machine import NOMINAL, this_machine
from hybrid.runtime.unit import Unit
from hybrid.store.directory import ModelDirectory
from placement.frequencies import Frequencies
from placement.plan import LayerPlan, Mode, Plan
from placement.prefill import CPU_TOKENS, PrefillCosts
from placement.simulate import at
from profiler.artifacts import UserError, sha256_file
from profiler.hardware import Hardware, read_hardware, shipped_hardware
from profiler.profile import read_profile


class PrefillChoice:
    """Whether a layer's rows in host memory are streamed in a step of so many tokens; see `placement.prefill`.

    What the figures of the machine say is worked out beforehand, for powers of two up to `most` tokens: a step is taken
    for one of the next as many.
    """

    def __init__(self, directory: ModelDirectory, options: EngineOptions, plan: Plan, most: int) -> None:
        self._directory, self._options, self._plan = directory, options, plan
        self._hardware = figures_for(options, plan)
        tokens = 2 * CPU_TOKENS
        while options.prefill_rows == "auto" and tokens < 2 * most:
            self.costs.ways(tokens)
            tokens *= 2

    def __call__(self, index: int, tokens: int) -> bool:
        """See `hybrid.runtime.streaming.Streams`."""
        if tokens <= CPU_TOKENS or all(s.computed_on == "gpu" for s in self._plan.layers[index].segments):
            return False
        if self._options.prefill_rows == "streamed":
            return True
        return self.costs.ways(1 << (tokens - 1).bit_length())[index].streams

    @functools.cached_property
    def costs(self) -> PrefillCosts:
        """Of the plan in the engine's mode, with the profile that the plan was made from, where that is still here.

        Without it every row counts as needed, as most are by some of many tokens. Rows on the drive count as rows in
        memory: both ways read them from there.
        """
        options, plan = self._options, self._plan
        frequencies = self._frequencies()
        mode: Mode = options.mode
        if frequencies is None:
            mode = "dense"
        elif mode == "predicted" and not frequencies.has_predictors:
            mode = "exact"
        budgets = plan.budgets
        placement = at(plan, budgets.batch, budgets.context)
        placement = replace(placement, mode=mode, sparse=plan.sparse or mode != "dense", layers=_in_memory(plan.layers))
        predictors = options.predictors if mode == "predicted" else None
        sizes = model_sizes(self._directory, predictors, budgets.context, budgets.vram, options.kv_format)
        return PrefillCosts(sizes, frequencies, self._hardware, placement)

    def _frequencies(self) -> Frequencies | None:
        directory, digest = self._directory, self._plan.digests.profile
        for name in directory.added_names("profiles") if digest else ():
            path = directory.profile_path(name)
            if sha256_file(path) == digest:
                profile = read_profile(path, f"hybrid profile {directory.path} --text FILE")
                return Frequencies.in_row_order(profile, directory.row_orders())
        return None


def figures_for(options: EngineOptions, plan: Plan) -> Hardware:
    """The figures of this machine; where it was not measured, those that the plan was made with, if they are shipped.

    Raises:
        UserError: the file of the machine's figures is damaged.
    """
    measured = this_machine("cpu" if options.second_device == "cpu" else "cuda")
    if measured is not None:
        return measured
    if plan.hardware in shipped_hardware():
        shipped = read_hardware(plan.hardware)
        if shipped.digest == plan.hardware_digest:
            return shipped
    return read_hardware(NOMINAL)


def row_stream(
    directory: ModelDirectory,
    options: EngineOptions,
    gpu: Unit | None,
    layers: Sequence[SplitLayer],
    tokens: int,
) -> RowStream | None:
    """What streams rows to the GPU in steps of up to `tokens` tokens; None where nothing is ever streamed.

    Raises:
        UserError: rows are to be streamed, and steps are too small for it.
    """
    plan, way = options.plan, options.prefill_rows
    room = plan is not None and plan.bytes["gpu"]["buffers"] > 0 and tokens > CPU_TOKENS
    if way == "streamed" and not room:
        raise UserError(
            f"rows are streamed to a GPU in steps of more than {CPU_TOKENS} tokens, and steps have {tokens} here: plan "
            "with a larger --vram, and ask for more with prefill_tokens where all units are in host memory"
        )
    banks = [bank for x in layers for bank in (x.far_banks if x.near is gpu else x.near_banks)]
    if plan is None or gpu is None or not room or not banks or way == "computed":
        return None
    choice = PrefillChoice(directory, options, plan, tokens)
    return RowStream(gpu, banks[0], stream_rows(directory.spec), choice)


def _in_memory(layers: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
    return tuple(
        replace(layer, segments=tuple(replace(s, resident="ram") if s.on_flash else s for s in layer.segments))
        for layer in layers
    )
