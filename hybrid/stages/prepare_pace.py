"""How far `hybrid prepare` is, and how long it still takes: guessed before a phase, by its own pace once it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hybrid.spec import ModelSpec
from profiler.capture import CaptureLimits
from profiler.training import Recipe

PACKED_PER_SECOND = 150e6  # bytes, until the pace of this machine is seen
PLANNING = 2.0  # seconds
TRAINING = 1.4  # of what a predictor's products take: the search for its rank, and what goes around it
TELLING = 0.03  # of a phase, before which its own pace says little
SIDE = 1024  # of the matrices that are multiplied to see how fast the machine is


@dataclass(frozen=True)
class Status:
    """What is shown: the phase and what it does now, the share of all work that is done, and the seconds left, None
    where nothing is known of them.
    """

    phase: str
    stage: str
    share: float
    left: float | None


@dataclass
class Pace:
    """expected: seconds of each phase to come, in their order; a phase that turns out to be done already takes none."""

    expected: dict[str, float]
    show: Callable[[Status], None]
    clock: Callable[[], float] = time.monotonic
    _running: str = ""
    _began: float = 0.0
    _share: float = 0.0
    _spent: dict[str, float] = field(default_factory=dict)

    def begin(self, phase: str) -> None:
        """A phase starts; the one before it has ended."""
        self.end()
        self._running, self._began, self._share = phase, self.clock(), 0.0
        self.tell(phase, 0.0)

    def end(self) -> None:
        """The phase that runs has ended."""
        if self._running:
            self._spent[self._running] = self.clock() - self._began
            self.expected.pop(self._running, None)
            self._running = ""

    def finish(self) -> None:
        """All phases have ended."""
        self.end()
        self.expected.clear()
        self.show(Status("ready", "", 1.0, 0.0))

    def tell(self, stage: str, share: float) -> None:
        """So much of the phase that runs is done, 0 to 1."""
        self._share = max(self._share, min(1.0, share))
        self.show(Status(self._running, stage, self.share, self.left))

    @property
    def left(self) -> float | None:
        """Seconds until all phases have ended."""
        later = [seconds for phase, seconds in self.expected.items() if phase != self._running]
        if not self._running:
            return sum(later)
        elapsed, guess = self.clock() - self._began, self.expected.get(self._running)
        if self._share >= TELLING and elapsed > 1:
            return elapsed / self._share * (1 - self._share) + sum(later)
        return None if guess is None else max(guess * (1 - self._share), guess - elapsed, 0.0) + sum(later)

    @property
    def share(self) -> float:
        """The share of all work that is done, by time."""
        left = self.left
        done = sum(self._spent.values()) + (self.clock() - self._began if self._running else 0)
        return 0.0 if left is None or done + left <= 0 else done / (done + left)


def operations_per_second() -> float:
    """Additions and multiplications that torch's fp32 products do here: by the second of two, a tenth of a second."""
    a, b = torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    a @ b
    began = time.perf_counter()
    a @ b
    return 2 * SIDE**3 / (time.perf_counter() - began)


def profile_seconds(spec: ModelSpec, parameters: int, tokens: int, train: bool, speed: float) -> float:
    """About what profiling takes: the model over the text, and a predictor for each layer.

    speed: operations a second.
    """
    forward = 2 * parameters * tokens / speed
    if not train:
        return forward
    recipe = Recipe()
    products = 6 * recipe.steps * recipe.batch * (spec.hidden_size // 2) * (spec.hidden_size + spec.n_neurons)
    return forward + spec.n_layers * TRAINING * products / speed


class ProfileShare:
    """What the stages of a profiling run come to as a share of it.

    tokens: of the text, about. In the round that predictors are trained on, a layer is done when its predictor is.
    """

    def __init__(self, tokens: int, train: bool) -> None:
        sample = min(tokens, CaptureLimits().tokens) if train else 0
        first, rest = (4.0 if train else 1.0) * sample, float(max(0, tokens - sample))
        self._first = first / max(1.0, first + rest)
        self._trained = self._passed = self._counted = 0.0

    def after(self, stage: str, done: int, total: int) -> float:
        """The share once a stage has come so far."""
        part = done / total if total else 0.0
        if stage == "first round":
            self._passed = part
        elif stage == "training predictors":
            self._trained = part
        elif stage == "counting":
            self._trained, self._passed, self._counted = 1.0, 1.0, part
        elif stage == "reordering rows":
            return 1.0
        first = 0.75 * self._trained + 0.25 * max(self._passed, self._trained)
        return self._first * first + (1 - self._first) * self._counted
