"""What a tap is shown of a layer: the state before the FFN's norm belongs to the normalised one that follows it."""

import pytest
import torch

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.store.directory import ModelDirectory
from profiler.tap import ResidualTap


class Watching:
    """Keeps what it is shown, in order."""

    def __init__(self):
        self.seen = []

    def document(self):
        pass

    def residual(self, layer, states):
        self.seen.append(("residual", layer, states.clone()))

    def ffn(self, layer, hidden, activation, named):
        self.seen.append(("ffn", layer, hidden.clone()))


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_residual_comes_first_and_its_norm_is_what_the_ffn_reads(request, family, one_by_one):
    tap = Watching()
    assert isinstance(tap, ResidualTap)
    with Engine(ModelDirectory.open(request.getfixturevalue(f"{family}_directory")), EngineOptions("dense")) as engine:
        spec, dense = engine.directory.spec, engine.directory.dense
        engine.hidden_states(list(range(5, 17)), one_by_one, tap=tap)
        steps = 12 if one_by_one else 1
        assert [(kind, layer) for kind, layer, _ in tap.seen] == [
            (kind, layer) for _ in range(steps) for layer in range(spec.n_layers) for kind in ("residual", "ffn")
        ]
        for (_, layer, residual), (_, _, hidden) in zip(tap.seen[::2], tap.seen[1::2], strict=True):
            weight = dense(f"layers.{layer}.ffn_norm.weight")
            if spec.norm == "layer":
                bias = dense(f"layers.{layer}.ffn_norm.bias")
                expected = torch.nn.functional.layer_norm(residual, weight.shape, weight, bias, spec.norm_eps)
            else:
                expected = torch.nn.functional.rms_norm(residual, weight.shape, weight, spec.norm_eps)
            assert hidden.shape == (12 // steps, spec.hidden_size)
            assert torch.allclose(hidden, expected, atol=1e-5)
            assert not torch.allclose(hidden, residual, atol=1e-2)


def test_a_tap_that_does_not_ask_for_residuals_is_not_shown_them(llama_directory):
    class Plain:
        def document(self):
            pass

        def ffn(self, layer, hidden, activation, named):
            pass

    assert not isinstance(Plain(), ResidualTap)
    with Engine(ModelDirectory.open(llama_directory), EngineOptions("dense")) as engine:
        engine.hidden_states([1, 2, 3], tap=Plain())
