"""Every form of layer with its rows on two units: the sums of one unit, and the bytes that the plan counted."""

import pytest
import torch

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.sizes import model_sizes
from hybrid.stages.pack import pack
from hybrid.stages.plan import digests
from hybrid.store.directory import ModelDirectory
from placement.formulate import split_layer
from placement.plan import Budgets, Placement
from placement.planner import finish_plan
from profiler.hardware import read_hardware

VRAM, CONTEXT = 4 << 20, 64
FAMILIES = {
    "qwen2": {},
    "qwen3": {"attention_bias": True},
    "nemotron": {"mlp_bias": True},
    "falcon": {"bias": True},
    "falcon with one norm": {"new_decoder_architecture": False},
    "gpt_neox": {},
    "bamboo": {},
    "prosparse": {},
}


def half_of_each_layer(directory):
    """A plan whose layers have 50 rows on the GPU and their attention on one unit after the other."""
    sizes = model_sizes(directory, None, CONTEXT, VRAM, "f32")
    placement = Placement(
        mode="dense",  # times are predicted for other modes only from a profile
        sparse=False,
        budgets=Budgets(VRAM, None, CONTEXT),
        n_rows=sizes.n_rows,
        embeddings="gpu",
        head="gpu",
        layers=tuple(split_layer(sizes.n_rows, 50, "gpu" if i % 2 else "cpu") for i in range(sizes.n_layers)),
    )
    hardware = read_hardware("cpu-stand-in")
    bound = digests(directory, directory.row_orders(), None)
    return finish_plan(placement, name="halves", digests=bound, sizes=sizes, frequencies=None, hardware=hardware)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_on_two_units_add_up(make_family, tmp_path, family):
    source = make_family(family.partition(" ")[0], tmp_path, **FAMILIES[family])
    path = pack(source, tmp_path / "model").destination
    found = []
    with ModelDirectory.open(path) as directory:
        plan = half_of_each_layer(directory)
    for chosen in (None, plan):
        device = None if chosen is None else "cpu"
        options = EngineOptions(mode="exact", plan=chosen, kv_format="f32", context=CONTEXT, second_device=device)
        with Engine(ModelDirectory.open(path), options) as engine:
            ids = list(range(1, 61))
            found += [engine.logits(ids), engine.logits(ids, one_by_one=True)]
            if chosen is not None:
                assert dict(engine.machine.units["gpu"].used) == {k: v for k, v in plan.bytes["gpu"].items() if v}
    assert found[0].abs().max() > 0.5, "logits near zero would agree whatever was computed"
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], atol=2e-4, rtol=0)
