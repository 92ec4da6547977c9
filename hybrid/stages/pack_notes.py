"""What packing keeps and what it changes of the values of a quantised checkpoint: nothing is rounded in silence."""

from __future__ import annotations

from collections import Counter
from math import prod

from hybrid.checkpoint.reader import Checkpoint
from hybrid.checkpoint.tensors import FLOATS


def stored_weights(checkpoint: Checkpoint) -> Counter[str]:
    """How many weights of matrices a checkpoint has in each type, by its name."""
    found: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) > 1:
            found[tensor.code] += prod(tensor.shape)
    return found


def rounding_notes(checkpoint: Checkpoint, weight_format: str) -> list[str]:
    """Which of the quantised weights are kept bit for bit, and which are rounded again and why."""
    kept, turned, others = Counter[str](), Counter[str](), Counter[str]()
    total = 0
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) < 2:
            continue
        count = prod(tensor.shape)
        total += count
        if tensor.code in FLOATS:
            continue
        same = tensor.block_format == weight_format
        (others if not same else turned if name.endswith(".down.weight") else kept)[tensor.code] += count
    notes, advice = [], "; --format q8_0 would round less, and take twice the memory" if weight_format == "q4_0" else ""
    if kept:
        notes.append(f"{_shares(kept, total)} kept bit for bit")
    if turned:
        notes.append(
            f"{_shares(turned, total)} rounded again: the down projections, which are stored by neuron here, so that "
            f"their blocks lie along the other side of the matrix{advice}"
        )
    if others:
        notes.append(f"{_shares(others, total)} made {weight_format}, as a model directory has one format{advice}")
    return notes


def _shares(weights: Counter[str], total: int) -> str:
    parts = [f"{count / total:.1%} of the weights, in {code.lower()}," for code, count in weights.most_common()]
    return f"{' and '.join(parts)} are"
