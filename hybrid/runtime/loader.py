"""From a model directory and a plan to parts that run: every tensor placed on its unit, every row in a bank.

Without a plan everything is on the host, in place. What is placed here is what `model_sizes` counts for placement.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hybrid.model.decoder import Decoder
from hybrid.model.pages import KV_FORMATS
from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.runtime.buffers import reserve_buffers
from hybrid.runtime.cache_room import CacheRoom, choose_room
from hybrid.runtime.choices import check_same_model, choose_context
from hybrid.runtime.cores import require_cores, shared_cores, usable_cores
from hybrid.runtime.cuda_memory import device_memory
from hybrid.runtime.drive_rows import DriveRows, drive_rows
from hybrid.runtime.lane import Lane, ThreadLane
from hybrid.runtime.memory import available_memory
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.placer import Placer
from hybrid.runtime.prefill import row_stream
from hybrid.runtime.recorded import RecordedStep
from hybrid.runtime.recording import Recorded, record
from hybrid.runtime.scheduler import Scheduler
from hybrid.runtime.sizes import PREFILL_TOKENS
from hybrid.runtime.tally import Firing, Tally
from hybrid.runtime.unit import Unit, cuda_unit, host_unit, interpreted_unit, stand_in_unit
from hybrid.runtime.vram import fit
from hybrid.spec import ModelSpec
from hybrid.store.directory import ModelDirectory
from placement.plan import LayerPlan, Plan, Segment
from profiler.artifacts import UserError, format_size
from profiler.predictor import PredictorSet

STORED = ("attention", "embeddings", "head", "norms", "predictors", "neurons")  # purposes of what lies in files
Tell = Callable[[int, int], None]


@dataclass
class Machine:
    """A loaded model: what computes, and where it lies."""

    decoder: Decoder
    scheduler: Scheduler
    recorded: Recorded | None
    units: dict[str, Unit]
    lane: Lane | None
    banks: list[RowBank]
    context: int
    room: CacheRoom
    prefill_tokens: int
    guards: list[int]
    predictors: PredictorSet | None  # their mapping lasts as long as its guards
    dense_bytes_per_token: int
    kv_element_bytes: int
    drive_rows: DriveRows | None = None
    closed: bool = False

    def set_cutoffs(self, cutoffs: tuple[float, ...]) -> None:
        """Change the cutoffs of a model opened in mode threshold; its step is recorded anew, in milliseconds."""
        assert self.scheduler.mode == "threshold"
        check_cutoffs(self.decoder.spec, cutoffs)
        for layer, cutoff in zip(self.scheduler.layers, cutoffs, strict=True):
            for bank in (*layer.near_banks, *layer.far_banks):
                bank.cutoff = max(self.decoder.spec.activation_cutoff, cutoff)
        self._record_anew()

    def set_thresholds(self, thresholds: tuple[float, ...]) -> None:
        """Change the predictors' thresholds of a model opened in mode predicted, as `set_cutoffs` does."""
        assert self.scheduler.mode == "predicted"
        if len(thresholds) != self.decoder.spec.n_layers:
            raise UserError(f"{len(thresholds)} thresholds were given for {self.decoder.spec.n_layers} layers")
        self.scheduler.set_thresholds(thresholds)
        self._record_anew()

    def firing(self) -> Firing:
        """Which neurons fired, as was published last.

        Raises:
            UserError: that is not counted.
        """
        if self.scheduler.tally is None:
            raise UserError("which neurons fire was not counted: open the engine with tally=True")
        return self.scheduler.tally.firing()

    def settle_memory(self) -> None:
        """Between operators: what the plan leaves on the drive, and was read, leaves memory where it is too much."""
        if self.drive_rows is not None:
            self.drive_rows.settle()

    def publish(self) -> None:
        """Between steps: what was counted so far of which neurons fire is what other threads read."""
        if self.scheduler.tally is not None:
            self.scheduler.tally.publish()

    def _record_anew(self) -> None:
        if self.recorded is not None:
            self.recorded.close()
            self.recorded = record(self.decoder, self.scheduler, self.context)

    def close(self) -> None:
        """Stop the lane, invalidate the banks, forget the units: all of it, also where a part is interrupted."""
        self.closed = True
        with contextlib.ExitStack() as closing:  # the last one first
            for unit in self.units.values():
                closing.callback(unit.close)
            closing.callback(unguard, self.guards)
            for bank in self.banks:
                closing.callback(bank.close)
            if self.lane is not None:
                closing.callback(self.lane.close)
            if self.scheduler.stream is not None:
                closing.callback(self.scheduler.stream.close)
            if self.recorded is not None:
                closing.callback(self.recorded.close)
        self.predictors = None


def load_machine(directory: ModelDirectory, options: EngineOptions, tell: Tell | None = None) -> Machine:
    """Place a model as its plan says; `tell(done, total)` hears of the bytes that are copied to another unit.

    Raises:
        UserError: the plan or the predictors are of another model, the context is out of range or larger than memory,
            a budget is too small, or memory for a model that is not to be mapped.
    """
    plan, spec = options.plan, directory.spec
    if plan is not None:
        check_plan(directory, plan)
    if options.mode == "predicted" and options.predictors is None:
        raise UserError(
            f"{directory.path} has no predictors; make them with: hybrid profile {directory.path} --text FILE"
        )
    check_cutoffs(spec, options.cutoffs)
    planned = None if plan is None else plan.budgets.context
    context = choose_context(options.context, planned, spec.max_positions)
    if not options.mmap:
        hold(directory, options)
    layers = plan.layers if plan is not None else whole_on_host(spec.n_layers, spec.n_neurons)
    room = choose_room(spec, options, context, sum(layer.attention == "cpu" for layer in layers))
    with contextlib.ExitStack() as opened:
        units = make_units(options, directory.path, tell)
        for unit in units.values():
            opened.callback(unit.close)
        prefill = options.prefill_tokens or PREFILL_TOKENS
        if plan is not None and plan.bytes["gpu"]["buffers"]:  # the GPU computes something
            units["gpu"].admit(plan.bytes["gpu"])
            prefill = reserve_buffers(directory, plan, context, units["gpu"], prefill)
        predictors = options.predictors
        guards = [] if predictors is None else guard(predictors.mappings())
        opened.callback(unguard, guards)
        placer = Placer(directory, options, units, room.pages)
        outer = placer.outer()
        parts = [placer.attention(i, layer.attention) for i, layer in enumerate(layers)]
        split = [placer.ffn(i, layer) for i, layer in enumerate(layers)]
        for unit in units.values():
            unit.upload.close()
        if predictors is not None and not options.mmap:
            unguard(guards)
            predictors = None
        elif predictors is not None and predictors.path is not None:
            directory.watch(predictors.path, f"hybrid profile {directory.path} --text FILE")
        guards += guard(directory.mappings())
        lane = ThreadLane() if any(layer.far_banks for layer in split) else None
        if lane is not None:
            opened.callback(lane.close)
        larger = larger_than_memory(directory, options)
        if not larger:
            directory.gather()
        scattered = options.prefetch and larger and options.mode == "predicted" and options.mmap
        cutoff, overlap = spec.activation_cutoff, options.overlap
        tally = Tally(spec.n_neurons, [layer.units for layer in split], layers) if options.tally else None
        scheduler = Scheduler(split, options.mode, spec.has_exact_zeros, lane, cutoff, overlap, scattered, tally)
        decoder = Decoder(spec, outer, parts)
        other = units.get("gpu")
        with contextlib.nullcontext() if other is None or other.pool else other.explain_exhaustion("buffers"):
            recorded = record(decoder, scheduler, context)
        if recorded is not None:
            opened.callback(recorded.close)
        if isinstance(recorded, RecordedStep) and options.prefill_tokens is None:
            prefill = min(prefill, cpu.MAX_TOKENS)
        if isinstance(recorded, RecordedStep) and scattered:
            directory.scatter()
        scheduler.stream = row_stream(directory, options, units.get("gpu"), split, prefill)
        mapped = [range(address, address + length) for address, length, _ in directory.mappings()]
        opened.pop_all()
    return Machine(
        decoder=decoder,
        scheduler=scheduler,
        recorded=recorded,
        units=units,
        lane=lane,
        banks=placer.banks,
        context=context,
        room=room,
        prefill_tokens=prefill,
        guards=guards,
        predictors=predictors,
        dense_bytes_per_token=placer.dense_bytes_per_token(outer),
        kv_element_bytes=KV_FORMATS[options.kv_format],
        drive_rows=drive_rows(options, placer.on_drive, STORED, mapped),
    )


def check_cutoffs(spec: ModelSpec, cutoffs: tuple[float, ...] | None) -> None:
    """Refuse cutoffs that are not one for each layer."""
    if cutoffs is not None and len(cutoffs) != spec.n_layers:
        raise UserError(f"{len(cutoffs)} cutoffs were given for {spec.n_layers} layers")


def check_plan(directory: ModelDirectory, plan: Plan) -> None:
    """Refuse a plan that was made for another model, or that no engine runs."""
    check_same_model(directory, plan)
    mend = f"make one with: hybrid plan {directory.path} --vram SIZE"
    if any(s.streamed for layer in plan.layers for s in layer.segments):
        raise UserError(f"the plan streams rows to the GPU for every token, which only simulation knows; {mend}")


def larger_than_memory(directory: ModelDirectory, options: EngineOptions) -> bool:
    """Whether what is used of the host's files has to be read from the drive again and again."""
    on_drive = options.plan is not None and options.plan.total_bytes("flash") > 0
    return on_drive or host_bytes(directory, options) > available_memory()


def host_bytes(directory: ModelDirectory, options: EngineOptions) -> int:
    """Bytes of a model's files that stay on the host, predictors included."""
    needed = directory.weight_bytes + (0 if options.predictors is None else options.predictors.nbytes)
    if options.plan is not None:
        needed -= sum(options.plan.bytes["gpu"][purpose] for purpose in STORED)
    return needed


def hold(directory: ModelDirectory, options: EngineOptions) -> None:
    """Have what stays on the host, predictors included, read into ordinary memory as it is placed.

    Raises:
        UserError: less memory is free than that takes, or a file is damaged.
    """
    needed, free = host_bytes(directory, options), available_memory()
    if needed > free:
        raise UserError(
            f"--no-mmap reads all of {directory.path} into memory, {format_size(needed)}, and {format_size(free)} are "
            "free; leave --no-mmap (mmap=False) out, so that its files are used in place, or close what uses memory"
        )
    directory.hold()


def guard(mappings: Iterable[tuple[int, int, str]]) -> list[int]:
    """Have a file that shrinks under a mapping end the process with a clear line; see `unguard`."""
    return [cpu.guard_mapping(address, length, path) for address, length, path in mappings]


def unguard(guards: list[int]) -> None:
    """End guards, and forget them."""
    for handle in guards:
        cpu.unguard_mapping(handle)
    guards.clear()


def make_units(options: EngineOptions, model: Path, tell: Tell | None = None) -> dict[str, Unit]:
    """The host, and what the plan's GPU is here; a stand-in shares the host's cores evenly, unless each has its own.

    A GPU that a plan leaves alone is not touched: a context there would take what nobody planned for.

    Raises:
        UserError: a GPU is missing or full, or the process may not run on the cores that units are to have.
    """
    plan, threads = options.plan, options.threads or usable_cores()
    require_cores([core for cores in options.cores.values() for core in cores])
    host = options.slowdown.get("cpu", 1.0), options.cores.get("cpu", ())
    theirs = options.slowdown.get("gpu", 1.0), options.cores.get("gpu", ())
    if plan is None or plan.budgets.vram == 0 or (options.second_device != "cpu" and not plan.total_bytes("gpu")):
        return {"cpu": host_unit(threads, *host)}
    budget, memory = plan.budgets.vram, options.memory or device_memory(options.second_device)
    fit(plan.bytes["gpu"], budget, memory).require(model)
    if options.second_device == "interpreter":
        return {"cpu": host_unit(threads, *host, natively=True), "gpu": interpreted_unit(budget, memory)}
    if options.second_device != "cpu":
        return {"cpu": host_unit(threads, *host, natively=True), "gpu": _heard(cuda_unit(budget, memory), plan, tell)}
    shares = shared_cores(threads)
    stand_in = stand_in_unit(shares[1], budget, memory, *theirs)
    return {"cpu": host_unit(shares[0], *host), "gpu": _heard(stand_in, plan, tell)}


def _heard(unit: Unit, plan: Plan, tell: Tell | None) -> Unit:
    """The unit, of whose uploads somebody hears."""
    if tell is not None:
        total = sum(plan.bytes["gpu"][purpose] for purpose in STORED)
        unit.upload.told = lambda done: tell(min(done, total), total)
    return unit


def whole_on_host(layers: int, rows: int) -> tuple[LayerPlan, ...]:
    """Every layer on the host, in one segment."""
    return (LayerPlan("cpu", (Segment(0, rows, "ram", "cpu"),)),) * layers
