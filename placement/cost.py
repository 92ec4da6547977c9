"""Bytes: what a model's parts take, and what a placement takes of each memory, exactly, per purpose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from placement.plan import (
    MOST_BATCH,
    MOST_BYTES,
    MOST_CONTEXT,
    MOST_LAYERS,
    MOST_ROWS,
    PURPOSES,
    Bytes,
    LayerPlan,
    Memory,
    Placement,
    Unit,
    check_whole,
)
from profiler.artifacts import UserError, format_size
from profiler.formats import WEIGHT_FORMATS


@dataclass(frozen=True)
class ModelSizes:
    """All that placement knows of a model, in bytes; filled in from the model directory.

    n_rows: rows of one layer; row_bytes: the stride of one row's record, of which gate, up and down vectors (up and
    down where not `gated`) take equal shares; row_extra_bytes: what else each row needs, such as its bias.
    weight_format: of rows, projections and head.
    attention_bytes: per layer, weights, biases and both norms. predictor_bytes: per layer, 0 where there is none.
    embeddings_bytes: the token table; positions_bytes: learned positions, which live with it. head_bytes: 0 where the
    head is the token table. final_norm_bytes: lives with the head. kv_bytes_per_token: keys and values of one layer.
    kv_page_tokens: tokens of one page. kv_pages: pages that there are, whatever texts fill them; None: as many as all
    texts fill. buffer_bytes: work buffers of one unit.
    context_bytes: what a process takes of the GPU's memory by computing there, whatever is placed: `Hardware.context`.
    """

    n_layers: int
    n_rows: int
    row_bytes: int
    gated: bool
    attention_bytes: tuple[int, ...]
    predictor_bytes: tuple[int, ...]
    embeddings_bytes: int
    head_bytes: int
    kv_bytes_per_token: int
    buffer_bytes: int
    row_extra_bytes: int = 0
    weight_format: str = "f16"
    positions_bytes: int = 0
    final_norm_bytes: int = 0
    kv_page_tokens: int = 16
    context_bytes: int = 0
    kv_pages: int | None = None

    def __post_init__(self) -> None:
        check_whole("n_layers", self.n_layers, 1, MOST_LAYERS)
        check_whole("n_rows", self.n_rows, 1, MOST_ROWS)
        check_whole("row_bytes", self.row_bytes, 1, MOST_BYTES)
        check_whole("kv_page_tokens", self.kv_page_tokens, 1, MOST_CONTEXT)
        for name in ("attention_bytes", "predictor_bytes"):
            sizes = getattr(self, name)
            if len(sizes) != self.n_layers:
                raise UserError(f"plan: {name} should hold one size for each of {self.n_layers} layers")
            for size in sizes:
                check_whole(name, size, 0, MOST_BYTES)
        for name in ("embeddings_bytes", "head_bytes", "kv_bytes_per_token", "buffer_bytes"):
            check_whole(name, getattr(self, name), 0, MOST_BYTES)
        if self.weight_format not in WEIGHT_FORMATS:
            raise UserError(f"plan: weight format {self.weight_format!r:.40} is not known")
        for name in ("row_extra_bytes", "positions_bytes", "final_norm_bytes", "context_bytes"):
            check_whole(name, getattr(self, name), 0, MOST_BYTES)
        if self.kv_pages is not None:
            check_whole("kv_pages", self.kv_pages, 1, MOST_BYTES)

    @property
    def whole_row_bytes(self) -> int:
        """Bytes of one row with all that belongs to it."""
        return self.row_bytes + self.row_extra_bytes

    @property
    def gpu_overhead(self) -> int:
        """What a GPU that computes holds beside the model: work buffers, and what the process takes of it."""
        return self.buffer_bytes + self.context_bytes

    @property
    def tied(self) -> bool:
        """Whether the head is the token table, so that both live on one unit."""
        return self.head_bytes == 0

    @property
    def head_read_bytes(self) -> int:
        """What the head reads for one step."""
        return (self.embeddings_bytes if self.tied else self.head_bytes) + self.final_norm_bytes

    def kv_bytes(self, context: int, batch: int) -> int:
        """Bytes of one layer's KV pages: `kv_pages`, else those of `batch` sequences of `context` tokens."""
        check_whole("context", context, 1, MOST_CONTEXT)
        check_whole("batch", batch, 1, MOST_BATCH)
        pages = -(-context // self.kv_page_tokens) * batch if self.kv_pages is None else self.kv_pages
        return pages * self.kv_page_tokens * self.kv_bytes_per_token


def account(sizes: ModelSizes, placement: Placement) -> Bytes:
    """Exact bytes that a placement takes of GPU memory, RAM and flash, for each of `PURPOSES`.

    Predictors count only where they are used (sparse, mode predicted). Work buffers count in RAM always, and on the GPU
    where it computes anything, beside what the process takes of it; to those on the GPU comes a place for the largest
    layer's streamed rows.

    Raises:
        UserError: the placement is not one of this model.
    """
    if (len(placement.layers), placement.n_rows) != (sizes.n_layers, sizes.n_rows):
        raise UserError(
            f"the plan is for {len(placement.layers)} layers of {placement.n_rows} rows and the model has "
            f"{sizes.n_layers} of {sizes.n_rows}; make a plan for it with: hybrid plan DIR --vram SIZE"
        )
    if sizes.tied and placement.head != placement.embeddings:
        raise UserError("the plan parts the head from the embeddings, and in this model they are one table")
    taken: Bytes = {memory: dict.fromkeys(PURPOSES, 0) for memory in get_args(Memory)}
    taken[_memory(placement.embeddings)]["embeddings"] += sizes.embeddings_bytes + sizes.positions_bytes
    taken[_memory(placement.head)]["head"] += sizes.head_bytes
    taken[_memory(placement.head)]["norms"] += sizes.final_norm_bytes
    kv_bytes = sizes.kv_bytes(placement.budgets.context, placement.budgets.batch)
    for number, layer in enumerate(placement.layers):
        dense = taken[_memory(layer.attention)]
        dense["attention"] += sizes.attention_bytes[number]
        dense["kv"] += kv_bytes
        if uses_predictors(placement):
            dense["predictors"] += sizes.predictor_bytes[number]
        for segment in layer.segments:
            taken[segment.resident]["neurons"] += segment.rows * sizes.whole_row_bytes
    taken["ram"]["buffers"] = sizes.buffer_bytes
    if gpu_computes(placement):
        taken["gpu"]["buffers"] = (
            sizes.buffer_bytes + max(_streamed_rows(x) for x in placement.layers) * sizes.whole_row_bytes
        )
        taken["gpu"]["context"] = sizes.context_bytes
    return taken


def uses_predictors(placement: Placement) -> bool:
    """Whether the placement's mode asks predictors which rows to compute."""
    return placement.sparse and placement.mode == "predicted"


def require_fit(taken: Mapping[str, int], budget: int, option: str, remedy: str) -> None:
    """Refuse bytes per purpose that exceed a budget.

    Raises:
        UserError: how many bytes are missing, a line for each purpose, and the remedy.
    """
    total = sum(taken.values())
    if total <= budget:
        return
    lines = [f"  {purpose:<10} {format_size(size):>10}" for purpose, size in taken.items() if size]
    mebibytes = -(-total // (1 << 20))
    raise UserError(
        "\n".join(
            [
                f"the plan does not fit: {total} bytes are needed, {option} gives {budget}, {total - budget} bytes "
                f"({format_size(total - budget)}) are missing",
                *lines,
                f"give {option} {mebibytes}MiB or more{remedy}",
            ]
        )
    )


def _memory(unit: Unit) -> Memory:
    return "gpu" if unit == "gpu" else "ram"


def _streamed_rows(layer: LayerPlan) -> int:
    return sum(segment.rows for segment in layer.segments if segment.streamed)


def gpu_computes(placement: Placement) -> bool:
    """Whether the GPU computes anything, so that it has work buffers."""
    ffn = any(segment.computed_on == "gpu" for layer in placement.layers for segment in layer.segments)
    attention = any(layer.attention == "gpu" for layer in placement.layers)
    return ffn or attention or "gpu" in (placement.head, placement.embeddings)
