"""LLM in a flash: seconds that a token's weights take from the drive, as plans with rows on flash."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from papers.inputs import Constants, Inputs
from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.plan import Budgets, LayerPlan, Placement, Segment
from placement.simulate import step_seconds, whole_layers


def reading_ms(inputs: Inputs, row: dict[str, Any], constants: Constants) -> float:
    """Milliseconds that reading takes for one token: what the step takes longer than with the same rows in memory.

    reads: `all` of the model or `half` of it, layer by layer; or the `share` of rows that a token needs anew, each
    of its `vectors` by itself or a neuron's as a `bundle`. Whole layers move as one, and a window is what it leaves to
    read.
    """
    hardware = inputs.hardware(row["machine"], constants)
    sizes = inputs.shape(row["model"]).sizes(row["format"])
    frequencies = None
    if row["reads"] in ("all", "half"):
        sizes = whole_layers(sizes)
        layer_bytes = sizes.n_rows * sizes.row_bytes
        on_flash = sizes.n_rows
        if row["reads"] == "half":  # of the whole model, embeddings included, which stay in memory
            half = (layer_bytes * sizes.n_layers + sizes.embeddings_bytes) / 2
            on_flash = round(half / sizes.n_layers / sizes.row_bytes)
    else:
        if row["reads"] == "vectors":
            sizes = replace(sizes, n_rows=2 * sizes.n_rows, row_bytes=sizes.row_bytes // 2)
        on_flash = sizes.n_rows
        frequencies = _always(sizes, row["share"])
    times = [
        step_seconds(sizes, frequencies, hardware, _plan(sizes, rows, frequencies is not None), batch=1, context=1)
        for rows in (on_flash, 0)
    ]
    return 1000 * (times[0].token_seconds - times[1].token_seconds)


def _always(sizes: ModelSizes, share: float) -> Frequencies:
    shares = np.full((sizes.n_layers, sizes.n_rows), share)
    return Frequencies(active=shares, named=shares, union4=shares, union16=shares, has_predictors=True)


def _plan(sizes: ModelSizes, on_flash: int, sparse: bool) -> Placement:
    segments = []
    if on_flash < sizes.n_rows:
        segments.append(Segment(0, sizes.n_rows - on_flash, "ram", "cpu"))
    if on_flash:
        segments.append(Segment(sizes.n_rows - on_flash, sizes.n_rows, "flash", "cpu"))
    return Placement(
        mode="predicted" if sparse else "dense",
        sparse=sparse,
        budgets=Budgets(0, None, 1),
        n_rows=sizes.n_rows,
        embeddings="cpu",
        head="cpu",
        layers=(LayerPlan("cpu", tuple(segments)),) * sizes.n_layers,
    )
