"""What a run cost: rows and bytes per token, memory by unit. Bytes follow a fixed formula, from rows really counted."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid.runtime.activity import Activity
from hybrid.runtime.engine import Engine
from hybrid.runtime.memory import process_memory
from hybrid.runtime.vram import DeviceUse
from profiler.formats import vector_bytes
from profiler.thresholds import Loss, loss_label


@dataclass(frozen=True)
class RunSummary:
    """Figures of the tokens decoded so far; `rows_per_token` sums over layers, by unit.

    native_share: of the seconds, inside native programs; the rest is the interpreter's, and torch's where a model is
    not all in host memory.
    hidden_share: of the smaller side's time in split layers' FFNs, that in which the larger one computed too, summed
    layer by layer;
    split_milliseconds: there, per token, the rows beside attention (`near`), those elsewhere (`far`), and waiting for
    the latter. Both None where no layer is split.
    memory: bytes by unit. `gpu`: what was placed there, by purpose. `cpu`: `mapped` bytes of the model in files,
    `resident` and `proportional` bytes of this process (RSS and PSS: shared pages count in part).
    vram: what the plan's GPU memory came to: planned and placed by purpose, the budget, and what the process takes;
    None without. vram_warnings: where that was more than was planned or allowed.
    flash_bytes: neurons that the plan leaves on flash, where page faults fetch them.
    warning: what users of a lossy mode are told; loss: what was measured of it, if anything was.
    """

    mode: str
    tokens: int
    seconds: float
    tokens_per_second: float
    rows_per_token: dict[str, float]
    gates_per_token: dict[str, float]
    bytes_per_token: float
    hidden_share: float | None
    split_milliseconds: dict[str, float] | None
    native_share: float
    memory: dict[str, dict[str, int]]
    vram: DeviceUse | None = None
    vram_warnings: tuple[str, ...] = ()
    flash_bytes: int = 0
    warning: str | None = None
    loss: Loss | None = None


def bytes_per_token(engine: Engine, activity: Activity) -> float:
    """Bytes that a token of this activity touched on average: weights in their format, predictor, KV; no waste counted.

    dense parts (attention, norms, head, one embedding row) + predictors in predicted mode + the first vector of every
    gated row + the rest of every finished row + keys and values of the positions attended to.
    """
    spec, tokens = engine.directory.spec, max(1, activity.tokens)
    vector = vector_bytes(engine.directory.weight_format, spec.hidden_size)
    gated = activity.gpu.gated + activity.cpu.gated
    finished = activity.gpu.finished + activity.cpu.finished
    rows = vector * gated + vector * (len(spec.row_parts) - 1) * finished
    kv = activity.positions * 2 * spec.kv_size * engine.machine.kv_element_bytes * spec.n_layers
    return engine.machine.dense_bytes_per_token + (rows + kv) / tokens


def summarise(engine: Engine) -> RunSummary:
    """The summary of what an engine decoded."""
    activity = engine.ledger.decode
    tokens, units, options = max(1, activity.tokens), engine.machine.units, engine.options
    process = process_memory()
    memory = {"cpu": {"mapped": sum(size for _, size, _ in engine.directory.mappings()), "resident": process.resident}}
    if process.proportional is not None:
        memory["cpu"]["proportional"] = process.proportional
    vram = None
    if "gpu" in units and options.plan is not None:
        memory["gpu"] = dict(units["gpu"].used)
        vram = units["gpu"].use(options.plan.bytes["gpu"])
    return RunSummary(
        mode=options.mode,
        tokens=activity.tokens,
        seconds=activity.seconds,
        tokens_per_second=activity.tokens_per_second,
        rows_per_token={name: activity.rows(name).finished / tokens for name in units},
        gates_per_token={name: activity.rows(name).gated / tokens for name in units},
        bytes_per_token=bytes_per_token(engine, activity),
        hidden_share=activity.hidden_share,
        split_milliseconds=split_milliseconds(activity),
        native_share=activity.native_seconds / activity.seconds if activity.seconds else 0.0,
        memory=memory,
        vram=vram,
        vram_warnings=() if vram is None else vram.warnings,
        flash_bytes=options.plan.total_bytes("flash") if options.plan else 0,
        warning=loss_label(options.loss, engine.directory.path) if options.mode == "threshold" else None,
        loss=options.loss,
    )


def split_milliseconds(activity: Activity) -> dict[str, float] | None:
    """Milliseconds that a token spent in the FFNs of split layers, on average; None where there are none."""
    overlap, thousandths = activity.overlap, max(1, activity.tokens) / 1000
    if not overlap.far:
        return None
    sides = {"near": overlap.near, "far": overlap.far, "waiting": overlap.wait}
    return {side: seconds / thousandths for side, seconds in sides.items()}
