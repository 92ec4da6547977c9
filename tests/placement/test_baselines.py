"""Layer-wise offload as plans: within budget, as much as fits, and told apart by name."""

from collections.abc import Callable

import pytest

from placement.baselines import attention_on_gpu, everything_on_cpu, first_layers_on_gpu, reloaded, streamed
from placement.cost import ModelSizes
from placement.plan import Budgets, Digests, Plan
from profiler.artifacts import UserError
from profiler.hardware import Hardware
from profiler.speeds import FlashSpeed

BASELINES = (everything_on_cpu, first_layers_on_gpu, attention_on_gpu, streamed)
KV = 64 * 32
LAYER = 256 * 192 + KV + 10_000  # bytes of the first layer; each next one has one more
BUFFERS = 777
Build = Callable[..., Plan]


@pytest.fixture
def layer_wise(
    digests: Digests, make_sizes: Callable[..., ModelSizes], make_hardware: Callable[..., Hardware]
) -> Build:
    def make(
        baseline: Callable[..., Plan], vram: int, ram: int | None = None, drive: bool = True, **sizes: object
    ) -> Plan:
        machine = make_hardware(flash=(FlashSpeed(1 << 20, 32, 1e8),) if drive else ())
        return baseline(digests=digests, sizes=make_sizes(**sizes), hardware=machine, budgets=Budgets(vram, ram, 64))

    return make


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_is_a_dense_plan_without_the_sparse_machinery(
    layer_wise: Build, baseline: Callable[..., Plan]
) -> None:
    plan = layer_wise(baseline, 1 << 20)
    assert (plan.mode, plan.sparse, plan.solver) == ("dense", False, None)
    assert plan.bytes["gpu"]["predictors"] == plan.bytes["ram"]["predictors"] == 0
    assert sum(plan.total_bytes(memory) for memory in ("gpu", "ram")) >= 3 * LAYER + 11_064


def test_first_layers_go_one_by_one(layer_wise: Build) -> None:
    for vram, count, head, embeddings in (
        (0, 0, "cpu", "cpu"),
        (BUFFERS + LAYER - 1, 0, "gpu", "gpu"),
        (BUFFERS + LAYER, 1, "cpu", "cpu"),
        (BUFFERS + LAYER + 6_063, 1, "cpu", "cpu"),
        (BUFFERS + LAYER + 6_064, 1, "gpu", "cpu"),
        (BUFFERS + LAYER + 11_064, 1, "gpu", "gpu"),
        (BUFFERS + 2 * LAYER, 1, "gpu", "gpu"),
        (BUFFERS + 2 * LAYER + 1, 2, "cpu", "cpu"),
        (BUFFERS + 3 * LAYER + 3 + 11_064, 3, "gpu", "gpu"),
    ):
        plan = layer_wise(first_layers_on_gpu, vram)
        assert plan.name == f"first-{count}-layers-on-gpu"
        assert (plan.head, plan.embeddings) == (head, embeddings)
        assert plan.total_bytes("gpu") <= vram
        assert [layer.attention for layer in plan.layers] == ["gpu"] * count + ["cpu"] * (3 - count)
        assert [plan.gpu_rows(layer) for layer in range(3)] == [256] * count + [0] * (3 - count)
        assert not any(layer.crosses for layer in plan.layers)


def test_one_table_for_head_and_embeddings_moves_as_one(layer_wise: Build) -> None:
    assert layer_wise(first_layers_on_gpu, BUFFERS + LAYER + 5_063, head_bytes=0).head == "cpu"
    plan = layer_wise(first_layers_on_gpu, BUFFERS + LAYER + 5_064, head_bytes=0)
    assert (plan.name, plan.head, plan.embeddings) == ("first-1-layers-on-gpu", "gpu", "gpu")


def test_attention_on_the_gpu_leaves_the_ffn_on_the_cpu(layer_wise: Build) -> None:
    needed = BUFFERS + 3 * (10_001 + KV)
    plan = layer_wise(attention_on_gpu, needed)
    assert (plan.name, plan.total_bytes("gpu"), plan.head) == ("attention-on-gpu", needed, "cpu")
    assert all(layer.attention == "gpu" and layer.crosses for layer in plan.layers)
    assert plan.bytes["gpu"]["neurons"] == 0
    assert layer_wise(attention_on_gpu, needed + 6_064).head == "gpu"
    with pytest.raises(UserError, match="1 bytes"):
        layer_wise(attention_on_gpu, needed - 1)


def test_everything_on_the_cpu_uses_one_unit(layer_wise: Build) -> None:
    plan = layer_wise(everything_on_cpu, 1 << 20)
    assert (plan.name, plan.total_bytes("gpu")) == ("everything-on-cpu", 0)
    assert plan.expected.gpu_seconds == plan.expected.transfer_seconds == 0


@pytest.mark.parametrize("baseline", BASELINES)
def test_ram_is_kept_to_the_byte(layer_wise: Build, baseline: Callable[..., Plan]) -> None:
    needed = layer_wise(baseline, 100_000).total_bytes("ram")
    assert layer_wise(baseline, 100_000, ram=needed).total_bytes("ram") == needed
    with pytest.raises(UserError, match=f"--ram gives {needed - 1}, 1 bytes"):
        layer_wise(baseline, 100_000, ram=needed - 1)


def test_rows_that_are_streamed_need_a_place_for_one_layer(layer_wise: Build) -> None:
    needed = BUFFERS + 3 * (10_001 + KV) + 256 * 192
    plan = layer_wise(streamed, needed)
    assert (plan.name, plan.total_bytes("gpu"), plan.head) == ("streamed", needed, "cpu")
    assert plan.bytes["gpu"]["neurons"] == plan.bytes["flash"]["neurons"] == 0
    assert plan.bytes["ram"]["neurons"] == 3 * 256 * 192
    assert plan.expected.ffn_seconds == pytest.approx(3 * (256 * 192 * (1 / 5e8 + 1 / 4e9) + 1e-4))
    assert not any(layer.crosses for layer in plan.layers)
    with pytest.raises(UserError, match="1 bytes"):
        layer_wise(streamed, needed - 1)


@pytest.mark.parametrize(("vram", "unit"), [(1 << 20, "gpu"), (0, "cpu")])
def test_rows_that_are_reloaded_take_no_memory(layer_wise: Build, vram: int, unit: str) -> None:
    plan = layer_wise(reloaded, vram)
    assert {(s.resident, s.computed_on) for layer in plan.layers for s in layer.segments} == {("flash", unit)}
    assert plan.bytes["flash"]["neurons"] == plan.expected.flash_bytes == 3 * 256 * 192
    assert plan.bytes["gpu"]["neurons"] == plan.bytes["ram"]["neurons"] == 0
    assert plan.expected.ffn_seconds > 3 * 256 * 192 / 1e8
    with pytest.raises(UserError, match="no figures of a drive"):
        layer_wise(reloaded, vram, drive=False)
