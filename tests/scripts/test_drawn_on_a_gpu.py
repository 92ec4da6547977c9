"""Synthetic weights drawn on a GPU: the same statistics, other values, host memory."""

from __future__ import annotations

import pytest
import torch
from synthetic.planted import planted_predictor
from synthetic.shape import PRESETS, Shape
from synthetic.weights import PlantedWeights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_tensors_are_of_the_same_sizes_and_spread_and_lie_in_host_memory() -> None:
    shape = Shape(**PRESETS["tiny"])
    there, here = PlantedWeights(shape, torch.device("cuda")), PlantedWeights(shape)
    for name in here.names:
        drawn, expected = there.tensor(name), here.tensor(name)
        assert drawn.device.type == "cpu" and (drawn.shape, drawn.dtype) == (expected.shape, expected.dtype)
        assert drawn.float().std().item() == pytest.approx(expected.float().std().item(), rel=0.1, abs=1e-6), name
        assert torch.equal(there.tensor(name), drawn), "a seed names the weights"
    assert planted_predictor(there, 0).nbytes == planted_predictor(here, 0).nbytes
