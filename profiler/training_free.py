"""Predictors without training: from the matrix of the gates itself, in low rank or in few bits.

A neuron of a ReLU layer is active where its gate's product with the state is positive (ungated: its up product, bias
included). So whatever stands in for that matrix predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from profiler.capture import Split
from profiler.formats import is_quantised
from profiler.matrix import Matrix
from profiler.predictor import Predictor
from profiler.training import balanced

OVERSAMPLED = 16  # more dimensions than are wanted, which the random projection of the factors starts from
STATES = 8192  # tokens that tell which directions occur
DAMPING = 1e-4  # of the states' mean square: directions that hardly occur do not count as certain


@dataclass(frozen=True, eq=False)
class Gates:
    """What decides whether neurons are active: fp32 `[neurons, hidden]` and bias `[neurons]` or None, by id."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


def factors(gates: Gates, train: Split, rank: int, seed: int = 0, decides: torch.Tensor | None = None) -> Predictor:
    """The product of rank `rank` that is nearest to the gates' logits over the states seen, in f16.

    The truncated SVD of `G L`, where `L Lᵀ` is the states' second moment: nearest in the mean square of logits, not of
    weights (whitened SVD, as in SVD-LLM, Wang et al., 2024, section 3.1), by a randomised SVD (Halko et al., 2011).
    Where other states, `decides` `[tokens, hidden]`, go into the gates than the predictor reads, `G E[d xᵀ] L⁻ᵀ` takes
    the place of `G L`: reduced-rank regression (Izenman, 1975).
    """
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(train.tokens, (STATES,), generator=generator)
    states = train.hidden[picked].float()
    moment = (states.T @ states).double() / len(states)
    moment.diagonal().add_(DAMPING * moment.diagonal().mean() + 1e-30)
    root = torch.linalg.cholesky(moment).float()
    projected = gates.weight @ root
    if decides is not None:
        together = decides[picked].float().T @ states / len(states)
        projected = gates.weight @ torch.linalg.solve_triangular(root, together.T, upper=False).T
    rank = min(rank, *projected.shape)
    probes = torch.randn(projected.shape[1], min(rank + OVERSAMPLED, *projected.shape), generator=generator)
    basis, _ = torch.linalg.qr(projected @ probes)
    for _ in range(2):  # power iterations
        basis, _ = torch.linalg.qr(projected @ (projected.T @ basis))
    left, values, right = torch.linalg.svd(basis.T @ projected, full_matrices=False)
    fc2 = (basis @ left[:, :rank]) * values[:rank]
    fc1 = torch.linalg.solve_triangular(root, right[:rank], upper=False, left=False)
    first, second = balanced(fc1, fc2)
    return Predictor.low_rank(first, second, 0.0, family="factors", bias=gates.bias)


def truncated(predictor: Predictor, rank: int) -> Predictor:
    """The first `rank` factors of a product that `factors` made: what it would have made of that rank."""
    assert predictor.fc1 is not None and predictor.fc2 is not None
    fc1, fc2 = predictor.fc1.data[:rank], predictor.fc2.data[:, :rank].contiguous()
    return replace(predictor, fc1=Matrix.of(fc1), fc2=Matrix.of(fc2))


def few_bits(gates: Gates, weight_format: str) -> Predictor | None:
    """The gates' matrix rounded to a block format; None where it is not whole blocks."""
    assert is_quantised(weight_format), "fewer bits than 16"
    if gates.weight.shape[1] % 32:
        return None
    return Predictor.gates(Matrix.quantised(gates.weight, weight_format), 0.0, bias=gates.bias)
