"""How often each neuron of a planted layer fires, as a tensor."""

from __future__ import annotations

import torch

from placement.skewed import firing_shares


def firing_probabilities(neurons: int, active_share: float, hot_share: float) -> torch.Tensor:
    """fp64 `[neurons]`, falling, with a wanted mean and a wanted skew (`placement.skewed`).

    Raises:
        UserError: no power law does both.
    """
    return torch.from_numpy(firing_shares(neurons, active_share, hot_share))
