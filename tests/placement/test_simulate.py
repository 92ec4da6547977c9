"""Predicted speeds of requests, by figures worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.latency import token_seconds
from placement.plan import Budgets, LayerPlan, Placement, Segment
from placement.simulate import Workload, byte_bound, prompt_seconds, simulate, step_seconds, whole_layers
from profiler.artifacts import UserError
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit

# Two layers of 10 rows of 1 MB, 4 MB of attention and 1 kB of keys and values a token; 2 MB of head, tied.
SIZES = ModelSizes(
    n_layers=2,
    n_rows=10,
    row_bytes=1_000_000,
    gated=False,
    attention_bytes=(4_000_000, 4_000_000),
    predictor_bytes=(0, 0),
    embeddings_bytes=2_000_000,
    head_bytes=0,
    kv_bytes_per_token=1_000,
    buffer_bytes=0,
)
# 1 GB/s and 1 GFLOP/s on the CPU: in fp16 one token's products (one operation a byte) take as long as reading.
MACHINE = Hardware(
    name="a machine",
    description="",
    gpu=ComputeUnit(10e9, 0.0),
    cpu=ComputeUnit(1e9, 0.0, flops=1e9),
    link_bandwidth=2e9,
    back_bandwidth=2e9,
    hand_over=0.0,
    sync=0.0,
    measured=False,
)


def plan(*layers: LayerPlan) -> Placement:
    return Placement("dense", False, Budgets(1 << 30, None, 16), 10, "cpu", "cpu", layers)


ON_CPU = LayerPlan("cpu", (Segment(0, 10, "ram", "cpu"),))
ALL_ON_CPU = plan(ON_CPU, ON_CPU)


def test_the_bound_of_bytes_is_what_reading_takes_both_units_at_once() -> None:
    split = LayerPlan("gpu", (Segment(0, 4, "gpu", "gpu"), Segment(4, 10, "ram", "cpu")))
    seconds = byte_bound(SIZES, None, plan(split, ON_CPU), gpu=10e9, cpu=1e9, context=1000)
    # The first layer: 4 + 1 MB on the GPU, then 6 MB on the CPU while the GPU reads 4; the second, and the head: CPU.
    assert seconds == pytest.approx(0.0005 + 0.006 + 0.005 + 0.010 + 0.002)
    delayed = replace(MACHINE, hand_over=1e-3, cpu=ComputeUnit(1e9, 1e-4, contention=1.5))
    real = step_seconds(SIZES, None, delayed, plan(split, ON_CPU), batch=1, context=1000).token_seconds
    assert seconds < real


def test_a_step_at_another_batch_and_context() -> None:
    alone = step_seconds(SIZES, None, MACHINE, ALL_ON_CPU, batch=1, context=1000)
    # 2 x (4 + 10) MB of layers, 2 MB of head, 2 x 1 MB of keys and values, all at 1 GB/s.
    assert alone.token_seconds == pytest.approx(0.032)
    eight = step_seconds(SIZES, None, MACHINE, ALL_ON_CPU, batch=8, context=1000)
    # Products are 8 times as many, and each sequence has keys of its own.
    assert eight.token_seconds == pytest.approx(8 * 0.030 + 8 * 0.002)


def test_a_request_by_hand() -> None:
    found = simulate(SIZES, None, MACHINE, ALL_ON_CPU, Workload(prompt=0, output=10, batch=2))
    step = 2 * 0.030 + 2 * 2 * 6 * 1e-6  # six keys on average
    assert found.step.token_seconds == pytest.approx(step)
    assert found.prompt_seconds == 0
    assert found.seconds == pytest.approx(10 * step)
    assert found.tokens_per_second == pytest.approx(2 / step)
    assert found.end_to_end == pytest.approx(found.tokens_per_second)


def test_prompts_are_read_in_chunks_and_bound_by_products() -> None:
    # 1000 tokens in chunks of 400, 400 and 200, each token 30 MFLOP at 1 GFLOP/s; keys of half the prompt a chunk.
    seconds = prompt_seconds(SIZES, None, MACHINE, ALL_ON_CPU, 1000, chunk=400)
    assert seconds == pytest.approx(1000 * 0.030 + 3 * 2 * 500 * 1e-6, rel=1e-3)
    no_limit = replace(MACHINE, cpu=ComputeUnit(1e9, 0.0))
    assert prompt_seconds(SIZES, None, no_limit, ALL_ON_CPU, 1000, chunk=400) == pytest.approx(3 * 0.031, rel=1e-2)


def test_each_sequence_reads_its_prompt() -> None:
    one, four = (simulate(SIZES, None, MACHINE, ALL_ON_CPU, Workload(100, 1, batch)) for batch in (1, 4))
    assert four.prompt_seconds == pytest.approx(4 * one.prompt_seconds)
    assert one.end_to_end == pytest.approx(1 / (one.prompt_seconds + one.step.token_seconds))


def test_prompts_may_be_read_by_another_placement() -> None:
    streamed = plan(*[LayerPlan("gpu", (Segment(0, 10, "ram", "gpu"),))] * 2)
    whole = whole_layers(SIZES)
    found = simulate(SIZES, None, MACHINE, ALL_ON_CPU, Workload(500, 1), for_prompts=(whole, streamed))
    # Two layers of 14 MB over the link at 2 GB/s and from GPU memory at 10; the head's products on the CPU.
    layers = 2 * (0.014 / 2 + 0.014 / 10)
    assert found.prompt_seconds == pytest.approx(layers + 500 * 0.002 + 2 * 250 * 1e-7, rel=1e-3)


def test_layers_that_move_as_one_have_all_their_bytes_in_rows() -> None:
    whole = whole_layers(SIZES)
    assert whole.n_rows * whole.row_bytes == 14_000_000
    assert sum(whole.attention_bytes) == 0
    with pytest.raises(UserError, match="same size"):
        whole_layers(replace(SIZES, attention_bytes=(1, 2)))


def test_the_placement_decides_all_but_batch_and_context(
    make_sizes: Callable[..., ModelSizes], make_frequencies: Callable[..., Frequencies]
) -> None:
    sizes, frequencies = make_sizes(), make_frequencies()
    split = LayerPlan("gpu", (Segment(0, 64, "gpu", "gpu"), Segment(64, 256, "ram", "cpu")))
    placement = Placement("predicted", True, Budgets(1 << 30, None, 48, 4), 256, "gpu", "gpu", (split,) * 3)
    as_made = token_seconds(sizes, frequencies, MACHINE, placement)
    elsewhere = replace(placement, budgets=Budgets(1 << 30, None, 1, 1))
    assert step_seconds(sizes, frequencies, MACHINE, elsewhere, batch=4, context=48) == as_made


@pytest.mark.parametrize("change", [{"prompt": -1}, {"output": 0}, {"batch": 0}, {"batch": 1.5}, {"prompt": 1 << 40}])
def test_absurd_requests_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Workload(**{"prompt": 1, "output": 1, "batch": 1, **change})  # type: ignore[arg-type]
