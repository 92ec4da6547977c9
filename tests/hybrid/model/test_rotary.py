"""Rotary frequencies agree with transformers, Llama 3's scaling included."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hybrid.model.rotary import inverse_frequencies
from hybrid.spec import Llama3Scaling, ModelSpec

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


def spec(head_dim, theta, scaling):
    return ModelSpec(
        family="llama",
        vocab_size=8,
        hidden_size=2 * head_dim,
        n_layers=1,
        n_neurons=8,
        n_heads=2,
        n_kv_heads=1,
        head_dim=head_dim,
        max_positions=2048,
        activation="silu",
        gated=True,
        norm="rms",
        norm_eps=1e-5,
        positions="rope",
        rope_theta=theta,
        rope_scaling=scaling,
    )


@pytest.mark.parametrize("head_dim", [2, 16, 64, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_frequencies_are_those_of_transformers(head_dim, theta, scaled):
    parameters = {"rope_type": "llama3", **SCALING} if scaled else {"rope_type": "default"}
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=2048,
        rope_parameters={**parameters, "rope_theta": theta},
    )
    expected = LlamaRotaryEmbedding(config).inv_freq
    ours = inverse_frequencies(spec(head_dim, theta, Llama3Scaling(8.0, 1.0, 4.0, 256) if scaled else None))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
