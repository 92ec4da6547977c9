"""What was computed: rows by unit, seconds by side. Kept apart for prefill, decode and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class UnitRows:
    """Rows computed on a unit, summed over tokens: `gated` had their first product computed, `finished` all of them."""

    gated: int = 0
    finished: int = 0


@dataclass
class Overlap:
    """Seconds of layers that have rows on both units, between hand-over and join, summed layer by layer.

    near: computing the rows beside attention. far: computing those elsewhere. wait: this side waiting for the other.
    smaller: of both sides, in each layer. hidden: what of the smaller side the larger one hid, in each layer: for so
    long both computed.
    """

    near: float = 0.0
    far: float = 0.0
    wait: float = 0.0
    smaller: float = 0.0
    hidden: float = 0.0

    @classmethod
    def of_layer(cls, near: tuple[float, float], far: tuple[float, float], wait: float) -> Overlap:
        """One layer's, of the times at which each side began and ended."""
        (began, ended), (there, back) = near, far
        hidden = max(0.0, min(ended, back) - max(began, there))
        return cls(ended - began, back - there, wait, min(ended - began, back - there), hidden)

    def add(self, other: Overlap) -> None:
        """Add another sum to this one."""
        _add(self, other, 1.0)


@dataclass
class Activity:
    """Sums since it was made; all seconds are wall clock."""

    tokens: int = 0
    seconds: float = 0.0
    positions: int = 0  # sum over tokens of the keys that each attended to
    native_seconds: float = 0.0  # inside recorded steps; the rest of `seconds` is the interpreter's and torch's
    gpu: UnitRows = field(default_factory=UnitRows)
    cpu: UnitRows = field(default_factory=UnitRows)
    overlap: Overlap = field(default_factory=Overlap)
    streamed_bytes: int = 0  # of rows brought from host memory to the GPU

    def rows(self, unit: str) -> UnitRows:
        """The rows of a unit by its name."""
        return self.gpu if unit == "gpu" else self.cpu

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the wall clock; zero where nothing ran."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def hidden_share(self) -> float | None:
        """Share of the smaller side's time that the larger side hid, within the FFN of split layers.

        The sum over layers of what was hidden over the sum over layers of the smaller side; None where no layer is
        split.
        """
        return self.overlap.hidden / self.overlap.smaller if self.overlap.smaller else None

    def add(self, other: Activity, share: float = 1.0) -> None:
        """Add a share of another sum to this one: of its seconds, and of its whole numbers to the nearest one."""
        _add(self, other, share)


@dataclass
class Ledger:
    """The engine's activities by kind of work: tokens of prompts (and of texts that are computed again), tokens that
    were sampled before, and evaluation.
    """

    prefill: Activity = field(default_factory=Activity)
    decode: Activity = field(default_factory=Activity)
    evaluation: Activity = field(default_factory=Activity)

    def divide(self, activity: Activity, prompt_tokens: int, prompt_positions: int) -> None:
        """Add what a pass did, of whose tokens so many belong to prompts.

        Tokens and positions are known of each; time and rows are not, and go by tokens: each is multiplied with what
        the pass reads once for all. So tokens by seconds are what passes really did, and rows by token are an average.
        """
        for side, tokens, positions in (
            (self.prefill, prompt_tokens, prompt_positions),
            (self.decode, activity.tokens - prompt_tokens, activity.positions - prompt_positions),
        ):
            if tokens:
                before = side.tokens, side.positions
                side.add(activity, tokens / activity.tokens)
                side.tokens, side.positions = before[0] + tokens, before[1] + positions


def _add(to: Any, other: Any, share: float) -> None:
    for part in fields(to):
        here, more = getattr(to, part.name), getattr(other, part.name)
        if isinstance(here, (int, float)):
            setattr(to, part.name, here + (round(more * share) if isinstance(here, int) else more * share))
        else:
            _add(here, more, share)
