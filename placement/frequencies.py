"""How often each row is needed: a profile's counts, as shares and in the order of the rows on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.plan import Mode
from profiler.artifacts import UserError
from profiler.profile import COUNT_NAMES, Profile

Shares = npt.NDArray[np.float64]
# Nearest to 1 that still has a finite logarithm of its complement, and far from it no measured share.
ALMOST_ALWAYS = 1 - 1e-12


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Shares `[layers, rows]` from 0 to 1, rows in the order of the layer files.

    active and named: of tokens; union4 and union16: of windows of 4 and 16 tokens in which the row is active at least
    once. named is read only where `has_predictors`.
    """

    active: Shares
    named: Shares
    union4: Shares
    union16: Shares
    has_predictors: bool

    def __post_init__(self) -> None:
        for name in COUNT_NAMES:
            shares = getattr(self, name)
            if shares.ndim != 2 or shares.shape != self.active.shape or shares.dtype != np.float64:
                raise UserError(f"frequencies: {name} should be float64 [layers, rows], as the others are")
            if not np.all((shares >= 0) & (shares <= 1)):
                raise UserError(f"frequencies: {name} should lie between 0 and 1")

    @classmethod
    def in_row_order(cls, profile: Profile, neuron_ids: npt.NDArray[np.integer[Any]]) -> Frequencies:
        """The profile's shares for `neuron_ids [layers, rows]`: which neuron each row of each layer file is.

        Raises:
            UserError: the ids are not each layer's neurons, each once: profile and model do not belong together.
        """
        shape = (profile.layers, profile.neurons)
        if neuron_ids.shape != shape or not np.array_equal(
            np.sort(neuron_ids), np.tile(np.arange(shape[1]), (shape[0], 1))
        ):
            raise UserError(
                f"the profile counts {shape[0]} layers of {shape[1]} neurons and the model's rows are others; "
                "profile the model anew with: hybrid profile DIR --text FILE"
            )
        shares = {name: np.take_along_axis(profile.frequency(name), neuron_ids, axis=1) for name in COUNT_NAMES}
        return cls(**shares, has_predictors=profile.has_predictors)

    @classmethod
    def unknown(cls, layers: int, rows: int) -> Frequencies:
        """Of a model that was not profiled: every row counts as active always, which no row can exceed."""
        always = np.ones((layers, rows))
        return cls(always, always, always, always, has_predictors=False)

    def needed(self, mode: Mode, batch: int) -> Shares:
        """Share of steps of `batch` tokens that need the row: all (dense), that find it active, or that name it.

        Active in mode threshold is above the thresholds: the profile was counted with them.

        1, 4 and 16 tokens are as measured; between them the share is linear in the logarithm of the batch; beyond 16,
        windows of 16 are taken as independent. What predictors name was not counted in windows: a row's named share
        grows with the batch as its active share was seen to grow (1 - (1 - f)^e, with the row's own exponent e).

        Raises:
            UserError: mode predicted without predictors in the profile.
        """
        if mode == "dense":
            return np.ones_like(self.active)
        union = self._union(batch)
        if mode in ("exact", "threshold"):
            return union
        if not self.has_predictors:
            raise UserError("the profile has no predictors: use --mode exact, or train them with: hybrid profile DIR")
        silent = -np.log1p(-np.minimum(self.active, ALMOST_ALWAYS))
        silent_in_window = -np.log1p(-np.minimum(union, ALMOST_ALWAYS))
        exponent = np.divide(silent_in_window, silent, out=np.full_like(silent, batch), where=silent > 0)
        return np.asarray(1 - (1 - self.named) ** np.clip(exponent, 1, batch))

    def _union(self, batch: int) -> Shares:
        # A short last window can leave a union just below the share of its single tokens.
        four = np.maximum(self.active, self.union4)
        sixteen = np.maximum(four, self.union16)
        if batch >= 16:
            return np.asarray(1 - (1 - sixteen) ** (batch / 16))
        below, above, start = (self.active, four, 1) if batch <= 4 else (four, sixteen, 4)
        weight = np.log2(batch / start) / 2
        return np.asarray((1 - weight) * below + weight * above)
