"""How static hotness is: what the neurons that one text chose as hot give on another text.

Keeping hot neurons in fast memory (PowerInfer, Song et al., 2024, section 3.1) assumes that what fired often will fire
often. So the share that the chosen ones give is measured on text that had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from profiler.profile import HALVES, Profile

SHARES = (0.01, 0.02, 0.05, 0.10, 0.20, 0.26, 0.43, 0.50)  # 26 and 43 %: those of PowerInfer's figure 5
Given = tuple[float | None, ...]  # for each of SHARES, the share of activations; None where nothing was active
Some = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LayerSkew:
    """One layer: what neurons chosen on one half of the text give on the other, and on the very text they were chosen
    on."""

    held_out: Given
    in_sample: Given


@dataclass(frozen=True)
class DomainSkew:
    """One domain, means over layers: chosen on the other half of all text, on the domain itself, on another domain."""

    name: str
    tokens: int
    held_out: Given
    in_sample: Given
    chosen_on: dict[str, Given]


@dataclass(frozen=True)
class Skew:
    """shares: of the neurons, chosen as the hottest. layers: of the model. domains: of the text."""

    shares: tuple[float, ...]
    layers: tuple[LayerSkew, ...]
    domains: tuple[DomainSkew, ...]

    @property
    def held_out(self) -> Given:
        """Mean over layers."""
        return mean([layer.held_out for layer in self.layers])

    @property
    def in_sample(self) -> Given:
        """Mean over layers."""
        return mean([layer.in_sample for layer in self.layers])


def measure_skew(profile: Profile) -> Skew | None:
    """The skew of a profile; None of one that was not counted in halves (version 1)."""
    if profile.parts is None:
        return None
    halves = profile.parts.sum(0, dtype=np.int64)  # [2, layers, neurons]
    layers = tuple(
        LayerSkew(_across(halves[:, i], halves[:, i]), given(profile.active[i], profile.active[i]))
        for i in range(profile.layers)
    )
    every = range(profile.layers)
    by_domain = profile.parts.sum(1, dtype=np.int64)  # [domains, layers, neurons]
    domains = []
    for d, name in enumerate(profile.domains):
        here, own = profile.parts[d], by_domain[d]
        others = {
            other: mean([given(by_domain[o][i], own[i]) for i in every])
            for o, other in enumerate(profile.domains)
            if o != d
        }
        held_out = mean([_across(halves[:, i], here[:, i]) for i in every])
        in_sample = mean([given(own[i], own[i]) for i in every])
        domains.append(DomainSkew(name, sum(profile.part_tokens[d]), held_out, in_sample, others))
    return Skew(SHARES, layers, tuple(domains))


def given(chosen_by: Some, on: Some) -> Given:
    """Share of the activations `on [neurons]` that the hottest ones by `chosen_by [neurons]` give; ties by id."""
    order = np.argsort(-chosen_by.astype(np.int64), kind="stable")
    sums = on[order].astype(np.int64).cumsum()
    if not sums[-1]:
        return (None,) * len(SHARES)
    return tuple(float(sums[max(1, round(share * len(sums))) - 1] / sums[-1]) for share in SHARES)


def mean(rows: Sequence[Given]) -> Given:
    """By column, of those that are there."""
    columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return tuple(sum(column) / len(column) if column else None for column in columns)


def hot_share(profile: Profile, layer: int, carried: float = 0.8) -> float:
    """Share of a layer's neurons, hottest first, that gives so much of its activations; 0 where nothing is active."""
    counts = np.sort(profile.active[layer])[::-1].cumsum()
    if not counts[-1]:
        return 0.0
    return float((np.searchsorted(counts, carried * counts[-1]) + 1) / profile.neurons)


def _across(chosen_by: Some, on: Some) -> Given:
    """Chosen on one half `[2, neurons]`, given on the other; the mean of both directions."""
    return mean([given(chosen_by[1 - half], on[half]) for half in range(HALVES)])
