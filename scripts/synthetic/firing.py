"""How often each neuron of a planted layer fires: a power law with a wanted mean and a wanted skew."""

from __future__ import annotations

from collections.abc import Callable

import torch

from profiler.artifacts import UserError

CARRIED = 0.8  # share of activations by which skew is told
LARGEST = 0.95  # no neuron fires more often


def firing_probabilities(neurons: int, active_share: float, hot_share: float) -> torch.Tensor:
    """fp64 `[neurons]`, falling: a power law of the rank, cut at 0.95, of mean `active_share`, whose first `hot_share`
    of neurons carry 80 % of all activations.

    Raises:
        UserError: no power law does both.
    """
    ranks = torch.arange(1, neurons + 1, dtype=torch.float64) / neurons

    def with_exponent(exponent: float) -> torch.Tensor:
        shares = ranks**-exponent
        scale = solve(lambda s: float((s * shares).clamp(max=LARGEST).mean()), active_share, 1e-12, 1e3)
        return (scale * shares).clamp(max=LARGEST)

    # The steeper the law, the more its first neurons carry.
    exponent = solve(lambda e: carried(with_exponent(e), hot_share), CARRIED, 1e-3, 20)
    probabilities = with_exponent(exponent)
    if abs(carried(probabilities, hot_share) - CARRIED) > max(0.01, 2 / neurons):
        raise UserError(
            f"with {active_share:.0%} of the neurons firing, {hot_share:.0%} of them cannot carry {CARRIED:.0%} of the "
            "activations; give another --hot-share or --sparsity"
        )
    return probabilities


def carried(probabilities: torch.Tensor, share: float) -> float:
    """Share of all activations that the first `share` of the neurons have."""
    first = max(1, round(share * len(probabilities)))
    return float(probabilities[:first].sum() / probabilities.sum())


def solve(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a function that rises from `low` to `high` (both positive) takes a value; bisection on a log scale."""
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low * high) ** 0.5
