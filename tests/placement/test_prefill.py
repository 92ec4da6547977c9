"""Whether a prompt's rows are computed in host memory or streamed to the GPU, by figures worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.plan import Budgets, LayerPlan, Mode, Placement, Segment, Unit
from placement.prefill import CPU_TOKENS, PICKED, STREAM_ROWS, PrefillCosts, Ways, prefill_step
from placement.simulate import prompt_seconds, step_seconds
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit

# A layer of 8192 rows of 1 kB in fp16, which is 512 weights and an operation a byte for a token; nothing else.
SIZES = ModelSizes(
    n_layers=1,
    n_rows=8192,
    row_bytes=1_000,
    gated=False,
    attention_bytes=(0,),
    predictor_bytes=(0,),
    embeddings_bytes=1,
    head_bytes=1,
    kv_bytes_per_token=0,
    buffer_bytes=0,
)
# The CPU reads 6 GB/s, so that 2 GB/s may be brought, and computes 20 GFLOP/s.
MACHINE = Hardware(
    name="a machine",
    description="",
    gpu=ComputeUnit(100e9, 0.0, flops=1e12),
    cpu=ComputeUnit(6e9, 0.0, flops=20e9),
    link_bandwidth=4e9,
    back_bandwidth=4e9,
    hand_over=0.0,
    sync=0.0,
    measured=False,
)
RESIDENT = 2048


def placed(mode: Mode = "dense", resident: int = RESIDENT, attention: Unit = "gpu", head: Unit = "gpu") -> Placement:
    segments = [Segment(0, resident, "gpu", "gpu")] if resident else []
    segments += [Segment(resident, 8192, "ram", "cpu")] if resident < 8192 else []
    layer = LayerPlan(attention, tuple(segments))
    return Placement(mode, mode != "dense", Budgets(1 << 30, None, 512), 8192, head, head, (layer,))


def ways(tokens: int, hardware: Hardware = MACHINE, **placement: object) -> Ways:
    return PrefillCosts(SIZES, None, hardware, placed(**placement)).ways(tokens)[0]


def test_both_ways_by_hand() -> None:
    found = ways(256)
    # 6144 rows of 1 kB in 16 pieces of 16 tokens: 1.57 GFLOP on the CPU, more than the GPU takes for its own.
    assert found.computed == pytest.approx(256 * 6_144_000 / 20e9)
    # 6.144 MB at 2 GB/s; the last of 6 chunks is multiplied when nothing comes any more.
    assert found.streamed == pytest.approx(6_144_000 / 2e9 + 256 * 1_024_000 / 1e12)
    assert found.streams
    assert found.seconds == found.streamed


def test_products_may_take_longer_than_the_link() -> None:
    slow = replace(MACHINE, gpu=ComputeUnit(100e9, 0.0, flops=50e9))
    # The first chunk comes while the GPU computes its own rows.
    assert ways(256, slow).streamed == pytest.approx(256 * 2_048_000 / 50e9 + 256 * 6_144_000 / 50e9)
    alone = ways(256, slow, resident=0)
    assert alone.streamed == pytest.approx(1_024_000 / 2e9 + 256 * 8_192_000 / 50e9)


def test_few_tokens_are_computed_and_many_streamed() -> None:
    costs = PrefillCosts(SIZES, None, MACHINE, placed())
    # 3.07 ms of copies are 10 tokens' products on the CPU; but steps of up to 16 tokens are not streamed.
    assert costs.ways(CPU_TOKENS)[0].streamed is None
    assert costs.crossover(0, 256) == CPU_TOKENS + 1
    narrow = PrefillCosts(SIZES, None, replace(MACHINE, link_bandwidth=2e8), placed())
    crossover = narrow.crossover(0, 256)
    assert crossover == 97  # 30.7 ms are 100 tokens' products
    assert not narrow.ways(crossover - 1)[0].streams
    assert narrow.ways(crossover)[0].streams
    assert PrefillCosts(SIZES, None, replace(MACHINE, link_bandwidth=1e7), placed()).crossover(0, 256) is None


@pytest.mark.parametrize("change", [{"resident": 0, "attention": "cpu", "head": "cpu"}, {"resident": 8192}])
def test_nothing_to_stream(change: dict[str, object]) -> None:
    assert ways(256, **change).streamed is None
    assert not ways(256, **change).streams


def frequencies(named: float) -> Frequencies:
    """Rows that are all needed by the same share of tokens, whatever others are."""
    share = np.full((1, 8192), named)
    return Frequencies(share, share, share, share, has_predictors=True)


@pytest.mark.parametrize("named", [0.01, 0.2])
def test_rows_that_no_token_names_are_not_brought(named: float) -> None:
    sizes = replace(SIZES, predictor_bytes=(1,))
    costs = PrefillCosts(sizes, frequencies(named), MACHINE, placed("predicted"))
    union = 1 - (1 - named) ** 16  # of 16 windows of 16 tokens, each of which names a share of `named`
    rows = 6144 * (union if union <= PICKED else 1.0)
    chunks = np.ceil(rows / STREAM_ROWS)
    products = 256 * 6_144_000 * union / 1e12
    found = costs.ways(256)[0]
    assert found.streamed == pytest.approx(rows * 1_000 / 2e9 + products / chunks, rel=1e-6)
    # The CPU multiplies only what each token names.
    assert found.computed == pytest.approx(256 * 6_144_000 * named / 20e9, rel=1e-6)


@given(
    tokens=st.integers(17, 256),
    link=st.floats(1e7, 1e11),
    named=st.floats(0.0, 1.0),
    resident=st.sampled_from([0, 64, 2048, 8191, 8192]),
    mode=st.sampled_from(["dense", "exact", "predicted"]),
)
def test_the_engine_never_takes_longer_than_without_streaming(
    tokens: int, link: float, named: float, resident: int, mode: Mode
) -> None:
    hardware, shares = replace(MACHINE, link_bandwidth=link), frequencies(named)
    sizes = replace(SIZES, predictor_bytes=(1,))
    costs = PrefillCosts(sizes, shares, hardware, placed(mode, resident))
    way = costs.ways(tokens)[0]
    assert way.seconds == min(way.computed, np.inf if way.streamed is None else way.streamed)
    if way.streamed is not None and mode != "predicted":
        assert way.streamed >= (8192 - resident) * 1_000 / min(link, 2e9) * (1 - 1e-12)


def test_a_step_of_a_prompt_takes_the_faster_way_in_every_layer(
    make_sizes: Callable[..., ModelSizes], make_frequencies: Callable[..., Frequencies]
) -> None:
    sizes, shares = make_sizes(), make_frequencies()
    split = LayerPlan("gpu", (Segment(0, 64, "gpu", "gpu"), Segment(64, 256, "ram", "cpu")))
    whole = LayerPlan("cpu", (Segment(0, 256, "ram", "cpu"),))
    placement = Placement("predicted", True, Budgets(1 << 30, None, 48, 1), 256, "gpu", "gpu", (split, whole, split))
    few = prefill_step(sizes, shares, MACHINE, placement, batch=8, context=48)
    assert few == step_seconds(sizes, shares, MACHINE, placement, batch=8, context=48)
    many = prefill_step(sizes, shares, MACHINE, placement, batch=64, context=48)
    usual = step_seconds(sizes, shares, MACHINE, placement, batch=64, context=48)
    ways = PrefillCosts(sizes, shares, MACHINE, placement).ways(64)
    assert many.ffn_seconds == pytest.approx(sum(way.seconds for way in ways))
    assert many.attention_seconds == usual.attention_seconds
    seconds = prompt_seconds(sizes, shares, MACHINE, placement, 128, chunk=64, step=prefill_step)
    first = prefill_step(sizes, shares, MACHINE, placement, batch=64, context=1)
    assert seconds == pytest.approx(2 * first.token_seconds, rel=1e-6)
