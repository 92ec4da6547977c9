"""Bytes and seconds against figures worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from placement.cost import PURPOSES, ModelSizes, account
from placement.frequencies import Frequencies
from placement.latency import token_seconds
from placement.plan import Budgets, LayerPlan, Placement, Segment
from placement.reads import row_reads
from profiler.artifacts import UserError
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit, FlashSpeed, Speed

BUDGETS = Budgets(vram=1 << 30, ram=None, context=100, batch=2)
SPLIT = LayerPlan("gpu", (Segment(0, 128, "gpu", "gpu"), Segment(128, 256, "ram", "cpu")))
ON_CPU = LayerPlan("cpu", (Segment(0, 256, "ram", "cpu"),))


def place(*layers: LayerPlan, **changes: object) -> Placement:
    usual = {"mode": "predicted", "sparse": True, "budgets": BUDGETS, "embeddings": "gpu", "head": "gpu"}
    return Placement(n_rows=256, layers=layers, **{**usual, **changes})  # type: ignore[arg-type]


def test_bytes_by_hand(make_sizes: Callable[..., ModelSizes]) -> None:
    sizes = make_sizes(2, row_extra_bytes=4, positions_bytes=300, context_bytes=88)
    taken = account(sizes, place(SPLIT, ON_CPU, embeddings="cpu"))
    assert taken["gpu"] == {
        "attention": 10_000,
        "embeddings": 0,
        "head": 6_000,
        "norms": 64,
        "predictors": 1_000,
        "kv": 7 * 16 * 32 * 2,  # 100 tokens are 7 pages of 16, for two sequences
        "buffers": 777,
        "context": 88,
        "neurons": 128 * 196,
    }
    assert taken["ram"] == {
        "attention": 10_001,
        "embeddings": 5_300,
        "head": 0,
        "norms": 0,
        "predictors": 1_001,
        "kv": 7 * 16 * 32 * 2,
        "buffers": 777,
        "context": 0,
        "neurons": (128 + 256) * 196,
    }


def test_predictors_take_bytes_only_where_they_are_used(make_sizes: Callable[..., ModelSizes]) -> None:
    sizes = make_sizes(1)
    for mode, sparse, expected in (
        ("predicted", True, 1_000),
        ("exact", True, 0),
        ("threshold", True, 0),
        ("dense", True, 0),
        ("dense", False, 0),
    ):
        assert account(sizes, place(SPLIT, mode=mode, sparse=sparse))["gpu"]["predictors"] == expected


def test_streamed_rows_need_a_place_and_flash_takes_none(make_sizes: Callable[..., ModelSizes]) -> None:
    sizes = make_sizes(2)
    streams = LayerPlan("gpu", (Segment(0, 100, "gpu", "gpu"), Segment(100, 256, "ram", "gpu")))
    taken = account(sizes, place(streams, SPLIT, mode="dense", sparse=False))
    assert taken["gpu"]["buffers"] == 777 + 156 * 192
    assert taken["ram"]["neurons"] == (156 + 128) * 192
    flash = LayerPlan("cpu", (Segment(0, 56, "ram", "cpu"), Segment(56, 256, "flash", "cpu")))
    assert account(sizes, place(flash, flash))["ram"]["neurons"] == 2 * 56 * 192


def test_one_unit_takes_nothing_of_the_gpu(make_sizes: Callable[..., ModelSizes]) -> None:
    taken = account(make_sizes(2, context_bytes=88), place(ON_CPU, ON_CPU, embeddings="cpu", head="cpu"))
    assert taken["gpu"] == dict.fromkeys(PURPOSES, 0)


def test_what_does_not_belong_together_is_refused(make_sizes: Callable[..., ModelSizes]) -> None:
    with pytest.raises(UserError, match="1 layers of 256 rows and the model has 2 of 256"):
        account(make_sizes(2), place(SPLIT))
    with pytest.raises(UserError, match="one table"):
        account(make_sizes(1, head_bytes=0), place(SPLIT, embeddings="cpu"))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": 0},
        {"n_rows": -1},
        {"row_bytes": 0},
        {"attention_bytes": (1,)},
        {"predictor_bytes": (1, 1, -1)},
        {"head_bytes": 1 << 70},
        {"kv_bytes_per_token": 1.5},
        {"kv_page_tokens": 0},
    ],
)
def test_impossible_sizes_are_refused(make_sizes: Callable[..., ModelSizes], changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        replace(make_sizes(), **changes)  # type: ignore[arg-type]


@pytest.fixture
def two_rows() -> Frequencies:
    """One layer of 256 rows: half of them active in half of the tokens, named in three quarters of them."""
    active = np.repeat([[0.5, 0.0]], 128, axis=1).reshape(1, 256)
    return Frequencies(active, active * 1.5, active, active, True)


@pytest.mark.parametrize(
    ("mode", "gated", "gpu_rows_read", "cpu_rows_read"),
    [
        ("dense", True, 128, 128),
        ("predicted", True, 128 * (0.75 / 3 + 2 / 3 * 0.5), 0),
        ("exact", True, 128 * (1 / 3 + 2 / 3 * 0.5), 128 / 3),
        ("threshold", True, 128 * (1 / 3 + 2 / 3 * 0.5), 128 / 3),
        ("exact", False, 128 * (1 / 2 + 1 / 2 * 0.5), 128 / 2),
    ],
)
def test_time_of_a_token_by_hand(
    make_sizes: Callable[..., ModelSizes],
    make_hardware: Callable[..., Hardware],
    two_rows: Frequencies,
    mode: str,
    gated: bool,
    gpu_rows_read: float,
    cpu_rows_read: float,
) -> None:
    sizes = make_sizes(1, gated=gated)
    budgets = replace(BUDGETS, batch=1)
    expected = token_seconds(sizes, two_rows, make_hardware(), place(SPLIT, mode=mode, budgets=budgets))
    predictor = 1_000 if mode == "predicted" else 0
    attention = (10_000 + predictor + 100 * 32) / 4e9 + (10e-4 if predictor else 8e-4)  # an overhead for each operator
    gpu = gpu_rows_read * 192 / 4e9 + 1e-4
    cpu = cpu_rows_read * 192 / 1e9 + 2e-4
    head = 6_064 / 4e9 + 2e-4
    assert expected.attention_seconds == pytest.approx(attention)
    assert expected.ffn_seconds == pytest.approx(max(gpu, cpu))
    assert expected.head_seconds == pytest.approx(head)
    assert expected.transfer_seconds == pytest.approx(1e-3)
    assert expected.token_seconds == pytest.approx(attention + max(gpu, cpu) + head + 1e-3)
    assert expected.gpu_seconds == pytest.approx(attention + gpu + head)
    assert expected.cpu_seconds == pytest.approx(cpu)
    assert expected.gpu_bytes == pytest.approx(10_000 + predictor + 3_200 + gpu_rows_read * 192 + 6_064)
    assert expected.cpu_bytes == pytest.approx(cpu_rows_read * 192)


def test_hand_overs_and_changes_of_unit(
    make_sizes: Callable[..., ModelSizes], make_hardware: Callable[..., Hardware]
) -> None:
    on_gpu = LayerPlan("gpu", (Segment(0, 256, "gpu", "gpu"),))
    ffn_on_cpu = LayerPlan("gpu", (Segment(0, 256, "ram", "cpu"),))
    layers = {"g": on_gpu, "c": ON_CPU, "s": SPLIT, "f": ffn_on_cpu}

    def transfers(embeddings: str, units: str, head: str) -> float:
        placement = place(
            *(layers[unit] for unit in units), mode="dense", sparse=False, embeddings=embeddings, head=head
        )
        seconds = token_seconds(make_sizes(len(units)), None, make_hardware(), placement).transfer_seconds
        return seconds / 1e-3

    assert transfers("gpu", "ggg", "gpu") == 0
    assert transfers("cpu", "ccc", "cpu") == 0
    assert transfers("gpu", "gsg", "gpu") == 1
    assert transfers("gpu", "gff", "gpu") == 2
    assert transfers("gpu", "ggc", "cpu") == 0.5
    assert transfers("cpu", "ggc", "cpu") == 1
    assert transfers("cpu", "gcg", "cpu") == 2
    assert transfers("gpu", "scc", "gpu") == 2


def test_streamed_rows_cross_the_link(
    make_sizes: Callable[..., ModelSizes], make_hardware: Callable[..., Hardware]
) -> None:
    streams = LayerPlan("gpu", (Segment(0, 256, "ram", "gpu"),))
    placement = place(streams, mode="dense", sparse=False)
    expected = token_seconds(make_sizes(1), None, make_hardware(), placement)
    assert expected.ffn_seconds == pytest.approx(256 * 192 / 5e8 + 256 * 192 / 4e9 + 1e-4)
    assert expected.transfer_seconds == 0


def test_a_tied_head_reads_the_embeddings(
    make_sizes: Callable[..., ModelSizes], make_hardware: Callable[..., Hardware]
) -> None:
    expected = token_seconds(make_sizes(1, head_bytes=0), None, make_hardware(), place(SPLIT, mode="dense"))
    assert expected.head_seconds == pytest.approx(5_064 / 4e9 + 2e-4)


def test_no_time_without_figures(
    make_sizes: Callable[..., ModelSizes],
    make_hardware: Callable[..., Hardware],
    make_frequencies: Callable[..., Frequencies],
) -> None:
    flash = LayerPlan("cpu", (Segment(0, 256, "flash", "cpu"),))
    with pytest.raises(UserError, match="flash"):
        token_seconds(make_sizes(1), make_frequencies(1), make_hardware(), place(flash))
    with pytest.raises(UserError, match="needs a profile"):
        token_seconds(make_sizes(1), None, make_hardware(), place(SPLIT))
    with pytest.raises(UserError, match="profile it anew"):
        token_seconds(make_sizes(1), make_frequencies(2), make_hardware(), place(SPLIT))


def test_speeds_follow_the_format_and_how_scattered_rows_are(
    make_sizes: Callable[..., ModelSizes], two_rows: Frequencies
) -> None:
    unit = ComputeUnit(1e9, 0, speeds={"q8_0": Speed(dense=1e7, rows=2.5e6)})
    sizes = make_sizes(1, weight_format="q8_0")
    named = row_reads(sizes, two_rows, "predicted", 1)
    # Named in 3/4 of the tokens: a quarter of each byte's time is that of scattered rows.
    read = 192 * (0.75 / 3 + 0.5 * 2 / 3)
    assert named.seconds(unit)[0, 0] == pytest.approx(read * (0.25 / 2.5e6 + 0.75 / 1e7))
    assert named.seconds(unit)[0, 255] == 0
    gated = row_reads(sizes, two_rows, "exact", 1)
    assert gated.seconds(unit)[0, 255] == pytest.approx(64 / 1e7)
    assert gated.seconds(unit)[0, 0] == pytest.approx(64 / 1e7 + 128 * 0.5 * (0.5 / 2.5e6 + 0.5 / 1e7))


def test_banks_read_whole_have_a_speed_of_their_own(
    make_sizes: Callable[..., ModelSizes], two_rows: Frequencies
) -> None:
    unit = ComputeUnit(1e9, 0, speeds={"f16": Speed(dense=1e7, rows=2.5e6, passed=5e6, flops=1e15)})
    dense = row_reads(make_sizes(1), two_rows, "dense", 1).seconds(unit)
    assert dense[0, 0] == pytest.approx(192 / 5e6)
    gated = row_reads(make_sizes(1), two_rows, "exact", 1).seconds(unit)
    assert gated[0, 0] == pytest.approx(64 / 5e6 + 128 * 0.5 * (0.5 / 2.5e6 + 0.5 / 5e6))
    slow = ComputeUnit(1e9, 0, flops=1e12, speeds={"f16": Speed(dense=1e7, rows=2.5e6, flops=1e3)})
    assert row_reads(make_sizes(1), two_rows, "dense", 4).seconds(slow)[0, 0] == pytest.approx(4 * 2 * 96 / 1e3)


def test_a_layer_without_a_predictor_is_read_as_in_exact_mode(
    make_sizes: Callable[..., ModelSizes], make_frequencies: Callable[..., Frequencies]
) -> None:
    sizes, frequencies = make_sizes(2, predictor_bytes=(0, 7)), make_frequencies(2)
    predicted, exact = (row_reads(sizes, frequencies, mode, 4).bytes for mode in ("predicted", "exact"))
    assert np.array_equal(predicted[0], exact[0])
    assert not np.array_equal(predicted[1], exact[1])


def test_products_count_where_they_take_longer_than_reading(
    make_sizes: Callable[..., ModelSizes], two_rows: Frequencies
) -> None:
    slow = ComputeUnit(1e12, 0, flops=1e6)
    rows = row_reads(make_sizes(1), two_rows, "dense", 8)
    assert rows.seconds(slow)[0, 0] == pytest.approx(8 * 2 * (192 / 2) / 1e6)
    shares = row_reads(make_sizes(1), two_rows, "predicted", 8).seconds(slow)
    assert shares[0, 0] == pytest.approx(8 * 2 * (192 / 2) * (0.75 / 3 + 0.5 * 2 / 3) / 1e6)


def test_rows_on_flash_are_read_from_there(
    make_sizes: Callable[..., ModelSizes], make_hardware: Callable[..., Hardware], two_rows: Frequencies
) -> None:
    flash = (FlashSpeed(192, 1, 1e6), FlashSpeed(1 << 20, 32, 1e8))
    machine, sizes = make_hardware(flash=flash), make_sizes(1)
    cold = LayerPlan("cpu", (Segment(0, 64, "ram", "cpu"), Segment(64, 256, "flash", "cpu")))
    expected = token_seconds(sizes, two_rows, machine, place(cold, budgets=replace(BUDGETS, batch=1)))
    read = 192 * (0.75 / 3 + 0.5 * 2 / 3)
    assert expected.flash_bytes == pytest.approx(64 * read)
    assert expected.ffn_seconds == pytest.approx(128 * read / 1e9 + 2e-4 + 64 * read / 1e6)
    reloaded = LayerPlan("gpu", (Segment(0, 256, "flash", "gpu"),))
    expected = token_seconds(sizes, None, machine, place(reloaded, mode="dense", sparse=False))
    assert expected.ffn_seconds == pytest.approx(256 * 192 * (1 / 1e8 + 1 / 5e8 + 1 / 4e9) + 1e-4)


def test_units_on_one_bus_slow_each_other(
    make_sizes: Callable[..., ModelSizes], make_hardware: Callable[..., Hardware]
) -> None:
    machine = make_hardware()
    machine = replace(machine, gpu=replace(machine.gpu, contention=2.0), cpu=replace(machine.cpu, contention=2.0))
    gpu, cpu = 128 * 192 / 4e9 + 1e-4, 128 * 192 / 1e9 + 2e-4
    expected = token_seconds(make_sizes(1), None, machine, place(SPLIT, mode="dense"))
    assert expected.ffn_seconds == pytest.approx(gpu + cpu)
