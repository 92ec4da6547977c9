"""Banks of rows: what they accept, what they hold, and that a closed one is of no use."""

import mmap
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from profiler.artifacts import UserError

POOL = cpu.Pool(1)


def test_what_a_bank_says_of_itself() -> None:
    bank = RowBank(torch.zeros(5, 70, dtype=torch.float16), "f16", 30, False, "silu", torch.zeros(5), first_row=12)
    assert len(bank) == 5
    assert bank.bytes == 5 * 140 + 5 * 4
    assert (bank.first_row, bank.stride_bytes, bank.weight_format) == (12, 140, "f16")


@pytest.mark.parametrize(("weight_format", "record"), [("q8_0", 3 * 68), ("q4_0", 3 * 36)])
def test_rows_of_blocks_are_counted_in_bytes(weight_format: str, record: int) -> None:
    rows = torch.zeros(5, 256, dtype=torch.uint8)
    bank = RowBank(rows, weight_format, 64, True, "relu")
    assert (bank.stride_bytes, bank.bytes, bank.weight_format) == (256, 5 * 256, weight_format)
    assert RowBank(rows[:, :record], weight_format, 64, True, "relu").stride_bytes == 256
    with pytest.raises(ValueError, match="do not hold 3 vectors of 64"):
        RowBank(rows[:, : record - 1], weight_format, 64, True, "relu")
    with pytest.raises(UserError, match="blocks of 32"):
        RowBank(rows, weight_format, 33, True, "relu")


def test_a_slice_of_a_bank_s_rows_is_a_bank() -> None:
    rows = (torch.randn(40, 3 * 16) / 4).bfloat16()
    x = torch.randn(2, 16)
    whole, _ = cpu.sparse_ffn(POOL, RowBank(rows, "bf16", 16, True, "relu"), x)
    parts = [RowBank(rows[a:b], "bf16", 16, True, "relu", first_row=a) for a, b in ((0, 0), (0, 1), (1, 40))]
    torch.testing.assert_close(sum(cpu.sparse_ffn(POOL, part, x)[0] for part in parts), whole, atol=1e-5, rtol=1e-5)


def test_a_closed_bank_refuses_and_frees_its_memory() -> None:
    rows = torch.zeros(4, 24, dtype=torch.bfloat16)
    alive = weakref.ref(rows)
    bank = RowBank(rows, "bf16", 8, True, "relu")
    del rows
    assert alive() is not None
    bank.close()
    bank.close()
    assert alive() is None
    for tokens in (1, 20):
        with pytest.raises(RuntimeError, match="closed"):
            cpu.sparse_ffn(POOL, bank, torch.zeros(tokens, 8))
    with pytest.raises(RuntimeError, match="closed"):
        _ = bank.addresses


def test_mapped_memory_is_used_in_place(tmp_path: Path) -> None:
    rows = torch.randn(100, 3 * 10).half()
    (tmp_path / "rows").write_bytes(bytes(128) + rows.numpy().tobytes())
    with (tmp_path / "rows").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    view = torch.frombuffer(mapped, dtype=torch.float16, offset=128).view(100, 30)
    bank = RowBank(view, "f16", 10, True, "relu")
    assert bank.addresses[0] == view.data_ptr()
    x = torch.randn(1, 10)
    assert torch.equal(
        cpu.sparse_ffn(POOL, bank, x)[0], cpu.sparse_ffn(POOL, RowBank(rows, "f16", 10, True, "relu"), x)[0]
    )


def test_a_bank_elsewhere_has_no_address_here() -> None:
    bank = RowBank(torch.zeros(4, 24, dtype=torch.bfloat16, device="meta"), "bf16", 8, True, "relu")
    with pytest.raises(RuntimeError, match="meta"):
        _ = bank.addresses


ROWS = torch.zeros(4, 24, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rows": ROWS.float()}, "bfloat16"),
        ({"weight_format": "f16"}, "float16"),
        ({"weight_format": "q8_0", "hidden": 32}, "uint8"),
        ({"weight_format": "f32"}, "'f32' is not known"),
        ({"weight_format": "b1"}, "'b1' is not known"),
        ({"rows": ROWS[0]}, "matrix"),
        ({"rows": ROWS[:, :23]}, "do not hold 3 vectors of 8"),
        ({"hidden": 0}, "do not hold"),
        ({"rows": ROWS.T.contiguous().T}, "strides"),
        ({"rows": ROWS[:1].expand(4, 24)}, "strides"),
        ({"activation": "tanh"}, "tanh"),
        ({"activation": "drelu", "gated": False}, "drelu"),
        ({"bias": torch.zeros(4)}, "without a gate"),
        ({"gated": False, "bias": torch.zeros(3)}, "shape"),
        ({"gated": False, "bias": torch.zeros(4).double()}, "float32"),
        ({"gated": False, "bias": torch.zeros(8)[::2]}, "contiguous"),
        ({"gated": False, "bias": torch.zeros(4, device="meta")}, "meta"),
        ({"first_row": -1}, "row -1"),
        ({"cutoff": -0.1}, "cutoff"),
        ({"cutoff": float("nan")}, "cutoff"),
        ({"cutoff": 1e39}, "cutoff"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RowBank(
            **({"rows": ROWS, "weight_format": "bf16", "hidden": 8, "gated": True, "activation": "relu"} | arguments)
        )
