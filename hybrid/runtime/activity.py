"""What was computed: rows by unit, seconds by side. Kept apart for prefill, decode and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class UnitRows:
    """Rows computed on a unit, summed over tokens: `gated` had their first product computed, `finished` all of them."""

    gated: int = 0
    finished: int = 0


@dataclass
class Activity:
    """Sums since it was made; all seconds are wall clock."""

    tokens: int = 0
    seconds: float = 0.0
    positions: int = 0  # sum over tokens of the keys that each attended to
    native_seconds: float = 0.0  # inside recorded steps; the rest of `seconds` is the interpreter's and torch's
    gpu: UnitRows = field(default_factory=UnitRows)
    cpu: UnitRows = field(default_factory=UnitRows)
    near_seconds: float = 0.0  # computing the rows beside attention, in layers that have rows elsewhere
    far_seconds: float = 0.0  # computing the rows elsewhere
    wait_seconds: float = 0.0  # waiting for the other unit after this one was done

    def rows(self, unit: str) -> UnitRows:
        """The rows of a unit by its name."""
        return self.gpu if unit == "gpu" else self.cpu

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the wall clock; zero where nothing ran."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def hidden_share(self) -> float | None:
        """Share of the smaller side's time that the larger side hid, in split layers; None where there are none."""
        smaller = min(self.near_seconds, self.far_seconds)
        if not smaller:
            return None
        together = self.near_seconds + self.wait_seconds
        return max(0.0, min(1.0, (self.near_seconds + self.far_seconds - together) / smaller))


@dataclass
class Ledger:
    """The engine's activities by kind of work."""

    prefill: Activity = field(default_factory=Activity)
    decode: Activity = field(default_factory=Activity)
    evaluation: Activity = field(default_factory=Activity)
