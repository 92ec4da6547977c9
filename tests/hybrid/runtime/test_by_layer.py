"""Layers one by one over many tokens give what the engine gives, and show what the dense path shows."""

import pytest
import torch

from hybrid.ops import reference
from hybrid.runtime.by_layer import LayerRunner
from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.stages.pack import pack
from hybrid.store.directory import ModelDirectory


class Seen:
    """A tap that keeps what it sees, by layer."""

    def __init__(self, layers):
        self.layers = [([], [], []) for _ in range(layers)]

    def document(self):
        pass

    def residual(self, layer, states):
        self.layers[layer][0].append(states.clone())

    def ffn(self, layer, hidden, activation, named):
        self.layers[layer][1].append(hidden.clone())
        self.layers[layer][2].append(activation.clone())


def random_sequences(vocab, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("lengths", [(1,), (16, 16), (40, 3, 1, 29, 16, 5)])
@pytest.mark.parametrize(
    ("family", "options", "mode"),
    [
        ("llama", {}, "exact"),
        ("llama", {"hidden_act": "silu"}, "dense"),
        ("mistral", {}, "exact"),
        ("opt", {}, "exact"),
        ("arcee", {}, "exact"),
        ("falcon", {}, "dense"),
    ],
)
def test_states_and_activations_are_those_of_the_dense_path(
    make_family, make_opt, tmp_path, family, options, mode, lengths
):
    checkpoint = make_opt(tmp_path, **options) if family == "opt" else make_family(family, tmp_path, **options)
    path = pack(checkpoint, tmp_path / "packed").destination
    spec = ModelDirectory.open(path).spec
    sequences = random_sequences(spec.vocab_size, lengths)
    seen = Seen(spec.n_layers)
    with Engine(ModelDirectory.open(path), EngineOptions(mode="dense", context=64, kv_format="f32")) as engine:
        expected = torch.cat([engine.hidden_states(ids, tap=seen) for ids in sequences])
    with Engine(ModelDirectory.open(path), EngineOptions(mode=mode, context=16, kv_format="f32")) as engine:
        runner = LayerRunner(engine, 64, len(sequences))
        batch = runner.batch(sequences)
        assert len(batch) == sum(lengths)
        states = torch.empty(len(batch), spec.hidden_size)
        runner.embed(batch, states)
        for layer, expected_here in enumerate(seen.layers):
            shown = [torch.empty_like(states), torch.empty_like(states), torch.empty(len(batch), spec.n_neurons)]

            def watch(at, inputs, residual, activations, shown=shown):
                for kept, values in zip(shown, (residual, inputs, activations), strict=True):
                    kept[at : at + len(inputs)] = values

            assert runner.run(layer, batch, states, watch) > 0
            for found, by_tap in zip(shown, expected_here, strict=True):
                torch.testing.assert_close(found, torch.cat(by_tap), atol=2e-5, rtol=1e-4)
        norm = engine.decoder.outer.final_norm
        if spec.norm == "rms":
            states = reference.rms_norm(states, norm.weight, spec.norm_eps)
        else:
            states = reference.layer_norm(states, norm.weight, norm.bias, spec.norm_eps)
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)


def test_all_layers_keep_their_keys_in_the_same_pages(llama_directory):
    with Engine(ModelDirectory.open(llama_directory), EngineOptions(mode="exact", context=16)) as engine:
        before = engine.machine.units["cpu"].used["kv"]
        LayerRunner(engine, 64, 3)
        spec = engine.directory.spec
        assert engine.machine.units["cpu"].used["kv"] - before == (4 + 3) * 16 * 2 * spec.kv_size * 2
