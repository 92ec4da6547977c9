"""What a GPU is measured with, on a real one: captured calls, operators over all weights, drawing, a comparison."""

import pytest
import torch

from hybrid.ops.captured import Captured
from hybrid.stages.compare import compare
from hybrid.stages.compare_contenders import Settings
from hybrid.stages.hardware_device import DeviceOperators
from hybrid.stages.hardware_weights import Shape, random_rows
from hybrid.stages.shipped import CHECKPOINT, HELDOUT_TEXT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_what_is_captured_is_done_again_by_every_replay():
    x = torch.zeros(4, device="cuda")
    captured = Captured([lambda: x.add_(1), lambda: x.mul_(2)], x.device)
    torch.cuda.synchronize()
    assert x.tolist() == [2.0] * 4, "once before it is captured, and not by capturing"
    captured.complete()
    assert x.tolist() == [6.0] * 4
    assert 0 < captured.seconds(0.01) < 1


@pytest.mark.parametrize("weight_format", ["f16", "q8_0", "q4_0"])
def test_operators_over_all_weights_finish_what_is_named(weight_format):
    from hybrid.runtime.unit import Unit

    shape = Shape(least=1 << 24, hidden=512, outputs=512, neurons=960)
    rows = random_rows(weight_format, shape)
    unit = Unit("gpu", torch.device("cuda"), None, in_place=False, budget=1 << 30)
    operators = DeviceOperators(unit, rows, weight_format, shape)
    before = operators.calls.counts.clone()
    operators.call("passed")()
    assert (operators.calls.counts - before).tolist() == [len(rows)] * 2
    before = operators.calls.counts.clone()
    operators.call("rows")()
    assert (operators.calls.counts - before).tolist() == [len(rows) // 960 * 96] * 2
    operators.call("dense")()


def test_a_comparison_keeps_everybody_within_the_budget(demo):
    pytest.importorskip("accelerate")
    budget = 2 << 30
    settings = Settings(
        vram=budget,
        rounds=1,
        prompts=1,
        prompt_tokens=32,
        tokens=8,
        text_tokens=300,
        context=256,
        checkpoint=CHECKPOINT,
    )
    result = compare(demo, [HELDOUT_TEXT], settings)
    rows = {row.name: row for row in result.rows}
    reasons = {name: row.reason for name, row in rows.items() if row.reason is not None}
    assert set(reasons) <= {"llama.cpp, -ngl", "llama.cpp, FFN on the CPU"}, reasons
    for name, row in rows.items():
        if row.reason is None and name != "everything-on-cpu":
            assert row.vram is not None and 0 < row.vram <= budget, name
    dense = rows["everything-on-cpu"].perplexity
    assert rows["exact, planned"].perplexity == pytest.approx(dense, rel=1e-3)
    assert rows["accelerate, device_map"].perplexity == pytest.approx(dense, rel=0.01)
    assert result.headline is not None
