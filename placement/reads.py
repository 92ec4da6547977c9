"""What a step reads of each row, and how long a unit takes for it: the terms that times are sums of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.plan import Mode
from profiler.artifacts import UserError
from profiler.formats import bits_per_weight
from profiler.speeds import ComputeUnit

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RowReads:
    """Expected bytes that one step reads of each row, float64 `[layers, rows]`.

    passed: read with all rows of a bank, one after the other; picked: read where a row is needed, and `density` is the
    share of steps that need it. products: floating-point operations with what is read, for all tokens of the step.
    """

    passed: Numbers
    picked: Numbers
    density: Numbers
    products: Numbers
    weight_format: str

    @property
    def bytes(self) -> Numbers:
        """Bytes `[layers, rows]`, however they are read."""
        return np.asarray(self.passed + self.picked)

    def seconds(self, unit: ComputeUnit) -> Numbers:
        """Seconds `[layers, rows]` that a unit takes for rows in its memory, alone.

        Rows here and there come at the speed of a tenth of the rows named; the more often rows are needed, the more of
        them lie side by side, and a byte's time goes over to that of a bank read whole in proportion. Where products
        take longer than reading, they count.
        """
        speed = unit.speed(self.weight_format)
        whole = speed.passed or speed.dense
        scattered = (1 - self.density) / speed.rows + self.density / whole
        reading = self.passed / whole + self.picked * scattered
        flops = unit.products(self.weight_format)
        return np.asarray(reading if flops is None else np.maximum(reading, self.products / flops))


def row_reads(sizes: ModelSizes, frequencies: Frequencies | None, mode: Mode, batch: int) -> RowReads:
    """The rows' reads in a mode, for steps of `batch` tokens.

    dense: all of M bytes. exact and threshold: the gate (ungated: the up vector) of every row, the rest of those that
    are active, M(1/3 + 2f/3) or M(1/2 + f/2). predicted: the first vector of named rows, the rest of those that are
    active among them; which are these follows from the counts only up to the smaller of both shares, which is what is
    taken, as predictors keep nearly all of the mass. A layer without a predictor is read as in exact mode.
    frequencies may be None in mode dense alone.

    Raises:
        UserError: no frequencies, or some that are not of this model.
    """
    shape = (sizes.n_layers, sizes.n_rows)
    nothing, everything = np.zeros(shape), np.ones(shape)
    whole = float(sizes.whole_row_bytes)
    first = sizes.row_bytes / (3 if sizes.gated else 2) + sizes.row_extra_bytes
    operations = 2 * 8 / bits_per_weight(sizes.weight_format)  # per byte of a weight, for one token
    if mode == "dense":
        return RowReads(
            everything * whole, nothing, everything, everything * whole * operations * batch, sizes.weight_format
        )
    if frequencies is None:
        raise UserError(f"mode {mode} needs a profile; make one with: hybrid profile DIR --text FILE")
    if frequencies.active.shape != shape:
        raise UserError(f"the profile has shape {frequencies.active.shape} and the model {shape}: profile it anew")
    active = frequencies.needed("exact", batch)
    passed, picked, density = everything * first, active * (whole - first), active.copy()
    products = first + frequencies.active * (whole - first)
    named_layers = [mode == "predicted" and size > 0 for size in sizes.predictor_bytes]
    if any(named_layers):
        named = frequencies.needed("predicted", batch)
        chosen = np.asarray(named_layers)
        passed[chosen] = 0
        picked[chosen] = (named * first + np.minimum(named, active) * (whole - first))[chosen]
        density[chosen] = named[chosen]
        alone = frequencies.named * first + np.minimum(frequencies.named, frequencies.active) * (whole - first)
        products[chosen] = alone[chosen]
    return RowReads(passed, picked, density, products * operations * batch, sizes.weight_format)
