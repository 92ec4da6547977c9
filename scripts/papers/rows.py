"""Every row of the papers by the cost model: two constants fitted on one row, all others predicted with them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scipy.optimize import brentq

from papers.drive import reading_ms
from papers.engines import ENGINES, Engine
from papers.inputs import Constants, Inputs
from profiler.artifacts import UserError

WITHIN = 1.5  # what a row should be predicted within
SHARES = (0.1, 1.0)
LONGEST_HAND_OVER = 0.01


@dataclass(frozen=True)
class Row:
    """One figure of a paper, and what the model says."""

    name: str
    quantity: str
    ours: float
    theirs: float
    fitted: bool
    source: str
    explanation: str

    @property
    def error(self) -> float:
        """How far ours is off, as a share of theirs; below 0 where it is too small."""
        return self.ours / self.theirs - 1

    @property
    def factor(self) -> float:
        """How many times too large or too small ours is; 1 where it agrees."""
        return max(self.ours / self.theirs, self.theirs / self.ours)


@dataclass(frozen=True)
class Reproduction:
    """All rows, and the constants that they were predicted with."""

    constants: Constants
    rows: tuple[Row, ...]

    @property
    def tested(self) -> tuple[Row, ...]:
        """The rows that nothing was fitted on."""
        return tuple(row for row in self.rows if not row.fitted)

    @property
    def median_error(self) -> float:
        """Median error of the rows that nothing was fitted on, without its sign."""
        return statistics.median(abs(row.error) for row in self.tested)

    @property
    def median_factor(self) -> float:
        """Median factor of the rows that nothing was fitted on."""
        return statistics.median(row.factor for row in self.tested)

    @property
    def missed(self) -> tuple[Row, ...]:
        """Rows beyond a factor of 1.5."""
        return tuple(row for row in self.tested if row.factor > WITHIN)


class Case:
    """One row's engines, made once: constants change times, never places."""

    def __init__(self, inputs: Inputs, row: dict[str, Any]) -> None:
        self.inputs, self.row = inputs, row
        self.workload = inputs.workload(row["workload"], row["batch"])
        models = row["model"] if isinstance(row["model"], list) else [row["model"]]
        self.models = [m for m in models if len(models) == 1 or inputs.fits_when_split(row["machine"], m)]
        compared = "speed-up" in row["quantity"]
        self.engines = [self._engine(model, row["engine"]) for model in self.models]
        self.baselines = [self._engine(model, "llama.cpp") for model in self.models] if compared else []

    def value(self, constants: Constants) -> float:
        """The row's figure."""
        hardware = self.inputs.hardware(self.row["machine"], constants)
        seconds = [engine.simulate(hardware, self.workload).seconds for engine in self.engines]
        if self.baselines:
            baselines = [engine.simulate(hardware, self.workload).seconds for engine in self.baselines]
            return statistics.mean(slow / fast for slow, fast in zip(baselines, seconds, strict=True))
        if self.row["quantity"] == "seconds":
            return seconds[0]
        return self.workload.output * self.workload.batch / seconds[0]

    def _engine(self, model: str, engine: str) -> Engine:
        budgets = self.inputs.budgets(self.row["machine"], self.workload)
        return ENGINES[engine](self.inputs.shape(model), self.row["format"], budgets)


def reproduce(inputs: Inputs) -> Reproduction:
    """All rows of the inputs.

    Raises:
        UserError: no constants give the fitted row.
    """
    constants = fit(inputs)
    rows = []
    for row in inputs.body["rows"]:
        drive = "reads" in row
        ours = reading_ms(inputs, row, constants) if drive else Case(inputs, row).value(constants)
        kept = ("name", "quantity", "theirs", "fitted", "source", "explanation")
        rows.append(Row(ours=ours, **{name: row[name] for name in kept}))
    return Reproduction(constants, tuple(rows))


def fit(inputs: Inputs) -> Constants:
    """The constants by which both figures of the fitted row come out: llama.cpp's speed and PowerInfer's.

    llama.cpp hands over once or twice a token, so its speed says what host memory gives; PowerInfer's then says what
    hand-overs cost.

    Raises:
        UserError: there is no such pair.
    """
    baseline, engine = (Case(inputs, row) for row in inputs.body["rows"] if row["fitted"])
    share, hand_over = 0.0, 0.0
    for _ in range(4):  # the second constant moves the first by a ten thousandth, and the next time by nothing
        share = _root(baseline, lambda value, h=hand_over: Constants(value, h), *SHARES)
        hand_over = _root(engine, lambda value, s=share: Constants(s, value), 0.0, LONGEST_HAND_OVER)
    return Constants(share, hand_over)


def _root(case: Case, constants: Callable[[float], Constants], low: float, high: float) -> float:
    def error(value: float) -> float:
        return case.value(constants(value)) - case.row["theirs"]

    if error(low) * error(high) > 0:
        raise UserError(f"no constant between {low:g} and {high:g} gives the row {case.row['name']!r}")
    return float(brentq(error, low, high, xtol=1e-9))
