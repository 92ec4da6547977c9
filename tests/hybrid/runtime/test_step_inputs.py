"""What changes from step to step, as both units find it."""

import ctypes
from array import array

import torch

from hybrid.model.eager import Step
from hybrid.model.kv_cache import Span
from hybrid.runtime.step_inputs import StepInputs


def at(address, count):
    return (ctypes.c_int64 * count).from_address(address)[:]


def test_both_units_find_each_tokens_id_position_and_blocks():
    inputs = StepInputs(100, torch.device("cpu"))  # 7 pages
    assert inputs.tables.shape == (16, 7)
    assert inputs.bytes >= 16 * (8 + 8 + 7 * 4)
    first, second = array("q", [5, 3, 9]), array("q", [6])
    for tokens, step in (
        (3, Step([70, 71, 72], [Span(first, 31, 2), Span(second, 4, 1)])),
        (1, Step([80], [Span(second, 15, 1)])),
    ):
        inputs.fill(step)
        before = inputs.ids[tokens:].clone()
        inputs.send(tokens)
        places = [position for span in step.spans for position in range(span.first_position, span.end)]
        count, ids, positions, blocks = inputs.addresses
        assert at(count, 1) == [tokens]
        assert at(ids, tokens) == inputs.ids[:tokens].tolist() == step.token_ids
        assert at(positions, tokens) == inputs.positions[:tokens].tolist() == places
        tables = [at(address, 1 + place // 16) for address, place in zip(at(blocks, tokens), places, strict=True)]
        assert tables == [row[: len(t)].tolist() for row, t in zip(inputs.tables, tables, strict=False)]
        assert torch.equal(inputs.ids[tokens:], before) or tokens < 3, "the rest stays what it was"
    assert tables == [[6]]
    inputs.count(9)
    assert at(inputs.addresses[0], 1) == [9]


def test_the_largest_step_fills_every_place():
    inputs, blocks = StepInputs(16 * 3, torch.device("cpu")), array("q", [2, 1, 0])
    step = Step(list(range(16)), [Span(blocks, 32, 16)])
    inputs.fill(step)
    inputs.send(16)
    assert inputs.ids.tolist() == step.token_ids
    assert inputs.positions.tolist() == list(range(32, 48))
    assert inputs.tables.tolist() == [[2, 1, 0]] * 16
