"""The extension itself: arguments it refuses, the choice of instruction set, and what is said where it is missing."""

import importlib.util
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

import hybrid.ops
from hybrid.ops import _native, cpu
from profiler.artifacts import UserError

POOL = _native.Pool(1)
ROWS = torch.zeros(4, 24, dtype=torch.bfloat16)
FLOATS = torch.zeros(64)
COUNTS = torch.zeros(2, dtype=torch.int64)

SPARSE_FFN = {
    "rows": ROWS.data_ptr(),
    "stride_bytes": 48,
    "n_rows": 4,
    "hidden": 8,
    "weight_format": _native.BF16,
    "gated": True,
    "activation": _native.RELU,
    "cutoff": 0.5,
    "skip_inactive": True,
    "bias": 0,
    "x": FLOATS.data_ptr(),
    "tokens": 1,
    "named": 0,
    "named_stride": 0,
    "y": FLOATS.data_ptr() + 32,
    "counts": COUNTS.data_ptr(),
}
LINEAR = {
    "weight": ROWS.data_ptr(),
    "stride_bytes": 48,
    "weight_format": _native.F16,
    "out_features": 4,
    "in_features": 24,
    "bias": 0,
    "x": FLOATS.data_ptr(),
    "tokens": 1,
    "y": FLOATS.data_ptr() + 128,
}
# Rows of [gate | up], 18 bytes each.
BLOCKS = {"weight_format": _native.Q4_0, "hidden": 32, "gated": False, "stride_bytes": 36}


def test_the_arguments_that_the_others_vary_are_good() -> None:
    _native.sparse_ffn(POOL, **SPARSE_FFN)
    _native.linear(POOL, **LINEAR)
    assert COUNTS.tolist() == [4, 0]
    _native.sparse_ffn(POOL, **(SPARSE_FFN | BLOCKS))
    _native.linear(POOL, **(LINEAR | {"weight_format": _native.Q8_0, "in_features": 32}))


def test_double_relu_needs_a_gate() -> None:
    with pytest.raises(ValueError, match="DRELU"):
        _native.sparse_ffn(POOL, **(SPARSE_FFN | BLOCKS | {"activation": _native.DRELU}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_format": _native.B1},
        {"weight_format": _native.F32},
        {"weight_format": -1},
        {"activation": 6},
        {"activation": -1},
        {"cutoff": -0.5},
        {"cutoff": float("inf")},
        {"cutoff": float("nan")},
        {"tokens": 0},
        {"tokens": 17},
        {"n_rows": -1},
        {"n_rows": 1 << 40},
        {"hidden": 0},
        {"hidden": -8},
        {"hidden": 9},
        {"stride_bytes": 46},
        {"stride_bytes": 49},
        {"stride_bytes": -48},
        {"stride_bytes": 1 << 50},
        {"rows": 0},
        {"rows": ROWS.data_ptr() + 1},
        {"bias": FLOATS.data_ptr()},
        {"gated": False, "bias": FLOATS.data_ptr() + 2},
        {"x": 0},
        {"x": FLOATS.data_ptr() + 1},
        {"y": 0},
        {"y": FLOATS.data_ptr() + 2},
        {"counts": 0},
        {"counts": COUNTS.data_ptr() + 4},
        {"tokens": 2, "named": FLOATS.data_ptr(), "named_stride": 3},
    ],
)
def test_sparse_ffn_refuses(wrong: dict[str, Any]) -> None:
    culprit = "stride_bytes" if wrong == {"hidden": 9} else list(wrong)[-1]
    with pytest.raises(ValueError, match=culprit):
        _native.sparse_ffn(POOL, **(SPARSE_FFN | wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_format": 7},
        {"weight_format": _native.F32},
        {"tokens": 17},
        {"out_features": 0},
        {"in_features": 0},
        {"in_features": 1 << 30},
        {"stride_bytes": 46},
        {"weight": 0},
        {"weight": ROWS.data_ptr() + 1},
        {"bias": FLOATS.data_ptr() + 1},
        {"x": 0},
        {"y": FLOATS.data_ptr() + 3},
    ],
)
def test_linear_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        _native.linear(POOL, **(LINEAR | wrong))


@pytest.mark.parametrize("weight_format", [_native.Q8_0, _native.Q4_0])
@pytest.mark.parametrize("n", [8, 24, 31, 33, 48])
def test_blocks_are_of_32_weights(weight_format: int, n: int) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        _native.sparse_ffn(POOL, **(SPARSE_FFN | {"weight_format": weight_format, "hidden": n}))
    with pytest.raises(ValueError, match="multiples of 32"):
        _native.linear(POOL, **(LINEAR | {"weight_format": weight_format, "in_features": n}))


@pytest.mark.parametrize(("weight_format", "width"), [(_native.Q8_0, 34), (_native.Q4_0, 18)])
def test_a_row_of_blocks_holds_quants_and_scales(weight_format: int, width: int) -> None:
    in_blocks = {"weight_format": weight_format, "hidden": 32, "gated": False, "n_rows": 1}
    with pytest.raises(ValueError, match="stride_bytes"):
        _native.sparse_ffn(POOL, **(SPARSE_FFN | in_blocks | {"stride_bytes": 2 * width - 2}))
    with pytest.raises(ValueError, match="stride_bytes"):
        _native.linear(
            POOL, **(LINEAR | {"weight_format": weight_format, "in_features": 32, "stride_bytes": width - 2})
        )


def test_the_instruction_set_can_be_named() -> None:
    assert _native.supported_isas()[0] == "portable"
    assert _native.isa() in _native.supported_isas()
    with pytest.raises(ValueError, match="'sse9' is not supported here; supported are portable"):
        _native.set_isa("sse9")


def isa_of_a_process(setting: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from hybrid.ops import _native; print(_native.isa())"]
    return subprocess.run(
        command, env=os.environ | {"HYBRID_ISA": setting}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", _native.supported_isas())
def test_the_environment_forces_an_instruction_set(name: str) -> None:
    assert isa_of_a_process(name).stdout == f"{name}\n"


def test_the_best_instruction_set_is_the_default() -> None:
    assert isa_of_a_process("").stdout == f"{_native.supported_isas()[-1]}\n"


def test_an_unknown_instruction_set_in_the_environment_is_an_error() -> None:
    done = isa_of_a_process("avx9")
    assert done.returncode == 1
    assert "HYBRID_ISA: instruction set 'avx9' is not supported here; supported are portable" in done.stderr


def test_without_the_extension_the_message_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "hybrid.ops._native", missing)
    monkeypatch.delattr(hybrid.ops, "_native")
    spec = importlib.util.spec_from_file_location("cpu_without_native", str(cpu.__file__))
    assert isinstance(cpu, ModuleType)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(UserError, match=r"pip install -e \."):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
