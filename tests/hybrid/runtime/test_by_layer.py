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
        self.layers = [([], []) for _ in range(layers)]

    def document(self):
        pass

    def ffn(self, layer, hidden, activation, named):
        self.layers[layer][0].append(hidden.clone())
        self.layers[layer][1].append(activation.clone())


def random_sequences(vocab, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("lengths", [(1,), (16, 16), (40, 3, 1, 29, 16, 5)])
@pytest.mark.parametrize(
    ("make", "options", "mode"),
    [
        ("make_llama", {}, "exact"),
        ("make_llama", {"hidden_act": "silu"}, "dense"),
        ("make_mistral", {}, "exact"),
        ("make_opt", {}, "exact"),
        ("make_arcee", {}, "exact"),
    ],
)
def test_states_and_activations_are_those_of_the_dense_path(request, tmp_path, make, options, mode, lengths):
    checkpoint = request.getfixturevalue(make)(tmp_path, **options)
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
        for layer, (hidden, activation) in enumerate(seen.layers):
            read, shown = torch.empty_like(states), torch.empty(len(batch), spec.n_neurons)

            def watch(at, inputs, activations, read=read, shown=shown):
                read[at : at + len(inputs)] = inputs
                shown[at : at + len(inputs)] = activations

            assert runner.run(layer, batch, states, watch) > 0
            torch.testing.assert_close(read, torch.cat(hidden), atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(shown, torch.cat(activation), atol=2e-5, rtol=1e-4)
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
