"""On a CUDA device: the operators against the CPU's, and a split model against the same model on one unit."""

import dataclasses

import pytest
import torch

from hybrid.ops import reference
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import plan as make_plan
from profiler.matrix import WEIGHT_FORMATS, Matrix

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

CLOSE = 2e-3


@pytest.fixture
def plan(demo_copy, settings_within):
    return make_plan(demo_copy, settings_within(8 << 20, context=256, name="cuda-test")).plan


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_sparse_ffn_on_the_device_is_that_of_the_host(tokens, gated, weight_format):
    hidden, rows = 96, 1500
    generator = torch.Generator().manual_seed(tokens)
    parts = [torch.randn(rows, hidden, generator=generator) for _ in range(3 if gated else 2)]
    weights = torch.cat([Matrix.quantised(part, weight_format).data for part in parts], 1)
    x = torch.randn(tokens, hidden, generator=generator)
    named = torch.rand(tokens, rows, generator=generator) < 0.2
    bias = None if gated else torch.randn(rows, generator=generator)
    arguments = (weight_format, hidden, gated, "relu")
    y, counts = reference.sparse_ffn(weights, *arguments, bias, x, named, True)
    on_device = None if bias is None else bias.cuda()
    found, found_counts = reference.sparse_ffn(weights.cuda(), *arguments, on_device, x.cuda(), named.cuda(), True)
    torch.testing.assert_close(found.cpu(), y, rtol=1e-4, atol=1e-3)
    assert found_counts.gated == counts.gated
    # A gate that is almost zero may fall to either side when it is summed in another order.
    assert abs(found_counts.finished - counts.finished) <= 2


@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
def test_blocks_are_encoded_and_widened_on_the_device_as_on_the_host(weight_format):
    values = torch.randn(70, 37 * 32, generator=torch.Generator().manual_seed(0))
    matrix = Matrix.quantised(values, weight_format)
    assert torch.equal(matrix.to("cuda").widened(slice(None)).cpu(), matrix.widened(slice(None)))
    ids = torch.tensor([69, 0, 33])
    assert torch.equal(matrix.to("cuda").widened(ids.cuda()).cpu(), matrix.widened(ids))
    off = (Matrix.quantised(values.cuda(), weight_format).data.cpu() != matrix.data).float().mean()
    assert float(off) < 1e-3, "a division may round to the neighbour there"


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_split_over_gpu_and_cpu_gives_the_logits_of_the_cpu(demo, heldout, plan, mode):
    placement = dataclasses.replace(plan, mode=mode)
    with (
        open_engine(demo, mode=mode, context=256) as one,
        open_engine(demo, mode=mode, plan=placement, device="cuda") as two,
    ):
        ids = one.tokenizer.encode(heldout)[:200]
        gaps = (one.logits(ids) - two.logits(ids)).abs().amax(dim=1)
        assert (gaps > CLOSE).float().mean().item() <= (0.02 if mode == "predicted" else 0.0)
        params = SamplingParams(max_tokens=16, ignore_eos=True)
        list(two.run([Sequence(ids[:20], params, two.tokenizer)]))
        assert two.ledger.decode.gpu.gated > 0
        assert two.ledger.decode.cpu.gated > 0
        if mode == plan.mode:
            assert dict(two.machine.units["gpu"].used) == {k: v for k, v in plan.bytes["gpu"].items() if v}
