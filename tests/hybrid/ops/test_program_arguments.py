"""What a program refuses: when an operator is recorded, and when a step is run."""

import math
from array import array
from typing import Any

import pytest
import torch

from hybrid.ops import _native, cpu

POOL = _native.Pool(1)
MEMORY = torch.zeros(16, 96)  # for everything: these calls are recorded, not run
HERE = MEMORY.data_ptr()
MATRIX = (HERE, 64, _native.BF16, 3, 0, HERE)

GOOD: dict[str, dict[str, Any]] = {
    "embed": {"weight": HERE, "stride_bytes": 64, "weight_format": _native.F16, "width": 32, "y": HERE},
    "add_positions": {
        "weight": HERE, "stride_bytes": 64, "weight_format": _native.Q8_0, "width": 32, "offset": 2, "y": HERE,
    },
    "angles": {"frequencies": HERE, "half": 5, "cosines": HERE, "sines": HERE},
    "norm": {
        "centred": True, "x": HERE, "weight": HERE, "bias": HERE, "width": 9, "vectors": 2, "eps": 1e-5, "y": HERE,
    },
    "linear": {"pool": POOL, "x": HERE, "width": 32, "matrices": [MATRIX, MATRIX]},
    "rotate": {"x": HERE, "heads": 2, "head_dim": 10, "rotary": 8, "cosines": HERE, "sines": HERE},
    "store": {
        "k": HERE, "v": HERE, "keys": HERE, "values": HERE, "page_format": _native.F32, "kv_heads": 2, "head_dim": 8,
    },
    "attention": {
        "pool": POOL, "q": HERE, "keys": HERE, "values": HERE, "page_format": _native.BF16, "heads": 6, "kv_heads": 2,
        "head_dim": 8, "window": 0, "y": HERE,
    },
    "add": {"a": HERE, "b": HERE, "width": 8, "y": HERE},
    "add_vector": {"vector": HERE, "width": 8, "y": HERE},
    "predict": {
        "pool": POOL, "fc1": MATRIX, "rectified": True, "fc2": (HERE, 64, _native.F16, 5, 0, 0), "threshold": 0.5,
        "neuron_ids": HERE, "x": HERE, "hidden": 32, "named": HERE,
    },
    "sparse_ffn": {
        "pool": POOL, "rows": HERE, "stride_bytes": 192, "n_rows": 4, "hidden": 32, "weight_format": _native.BF16,
        "gated": True, "activation": _native.RELU, "cutoff": 0.0, "skip_inactive": True, "bias": 0, "x": HERE,
        "named": HERE, "named_stride": 4, "more": False, "y": HERE, "counts": HERE, "activations": HERE,
        "activations_stride": 4,
    },
}  # fmt: skip

MANY = 1 << 30  # more than anything has
WRONG: dict[str, dict[str, list[Any]]] = {
    "embed": {
        "weight": [0, HERE + 1], "stride_bytes": [62, 65, -64, 1 << 40], "weight_format": [-1, _native.F32, _native.B1],
        "width": [0, -1, MANY], "y": [0, HERE + 2],
    },
    "add_positions": {"weight": [0], "stride_bytes": [32], "weight_format": [7], "width": [0, MANY], "y": [0]},
    "angles": {"frequencies": [0, HERE + 1], "half": [0, -1, MANY], "cosines": [0], "sines": [0, HERE + 2]},
    "norm": {
        "x": [0], "weight": [0, HERE + 1], "bias": [HERE + 1], "width": [0, -3, MANY], "vectors": [0, MANY], "y": [0],
    },
    "linear": {"x": [0, HERE + 1]},
    "rotate": {"x": [0], "heads": [0, -1], "head_dim": [0, MANY], "cosines": [0], "sines": [0]},
    "store": {
        "k": [0], "v": [HERE + 1], "keys": [0], "values": [0], "page_format": [_native.Q8_0, _native.Q4_0, -1, 9],
        "kv_heads": [0, -1, MANY], "head_dim": [0, -1, MANY],
    },
    "attention": {
        "q": [0], "keys": [0], "values": [0], "page_format": [_native.Q4_0, _native.B1], "heads": [0, 1, 5, -2],
        "kv_heads": [0, 4, -1], "head_dim": [0, MANY], "window": [-1], "y": [0],
    },
    "add": {"a": [0], "b": [0], "width": [0, MANY], "y": [HERE + 3]},
    "add_vector": {"vector": [0], "width": [0], "y": [0]},
    "predict": {"neuron_ids": [0, HERE + 2], "x": [0], "named": [0]},
    "sparse_ffn": {
        "rows": [0], "stride_bytes": [190, 193], "n_rows": [-1, MANY], "weight_format": [_native.F32], "x": [0],
        "activation": [6, -1], "cutoff": [-1.0, math.nan, math.inf], "bias": [HERE], "named_stride": [3, 0, -4],
        "y": [0], "counts": [0, HERE + 4],
        "activations": [HERE + 2], "activations_stride": [3, -1, MANY],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_the_arguments_that_the_others_vary_are_good(name: str) -> None:
    getattr(cpu.Program(), name)(**GOOD[name])


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        pytest.param(name, argument, value, id=f"{name}-{argument}-{place}")  # addresses differ from run to run
        for name, all_of in WRONG.items()
        for argument, values in all_of.items()
        for place, value in enumerate(values)
    ],
)
def test_it_is_refused(name: str, argument: str, value: Any) -> None:
    program = cpu.Program()
    with pytest.raises(ValueError, match=argument):
        getattr(program, name)(**(GOOD[name] | {argument: value}))
    assert program.run(16, HERE, HERE, HERE) >= 0, "nothing was recorded"


NAMES = ("weight", "stride_bytes", "weight_format", "out_features", "bias", "y")


@pytest.mark.parametrize("place", range(6))
def test_a_matrix_is_checked_like_every_other(place: int) -> None:
    wrong = [0, 62, 8, 0, HERE + 2, 0][place]
    matrix = tuple(wrong if i == place else value for i, value in enumerate(MATRIX))
    program = cpu.Program()
    with pytest.raises(ValueError, match=NAMES[place]):
        program.linear(POOL, HERE, 32, [MATRIX, matrix])
    if place < 5:  # the outputs of a predictor's matrices are not the caller's
        with pytest.raises(ValueError, match=NAMES[place]):
            program.predict(**(GOOD["predict"] | {"fc1": matrix}))


def test_shapes_that_do_not_fit() -> None:
    program = cpu.Program()
    with pytest.raises(ValueError, match="one to eight"):
        program.linear(POOL, HERE, 32, [])
    with pytest.raises(ValueError, match="one to eight"):
        program.linear(POOL, HERE, 32, [MATRIX] * 9)
    for odd in (0, 1, 9, -2):
        with pytest.raises(ValueError, match="even"):
            program.rotate(HERE, 2, 12, odd, HERE, HERE)
    with pytest.raises(ValueError, match="even number of a head's values"):
        program.rotate(HERE, 2, 12, 14, HERE, HERE)
    for weight_format in (_native.Q8_0, _native.Q4_0):
        with pytest.raises(ValueError, match="multiples of 32"):
            program.embed(HERE, 64, weight_format, 33, HERE)


@pytest.mark.parametrize("tokens", [0, -1, 17, 1 << 40])
def test_a_step_has_one_to_sixteen_tokens(tokens: int) -> None:
    with pytest.raises(ValueError, match="tokens"):
        cpu.Program().run(tokens, HERE, HERE, HERE)


@pytest.mark.parametrize("name", ["ids", "positions", "blocks"])
def test_a_step_needs_its_arrays(name: str) -> None:
    numbers = array("q", [0])
    step = dict.fromkeys(("ids", "positions", "blocks"), numbers.buffer_info()[0])
    for wrong in (0, HERE + 4):
        with pytest.raises(ValueError, match=name):
            cpu.Program().run(1, **(step | {name: wrong}))
