"""The tensors of a model under this project's names, and their shapes: a function of the spec and nothing else.

`embed`, `positions`, `layers.{i}.attn_norm|q|k|v|o|q_norm|k_norm|ffn_norm|gate|up|down`, `final_norm`, `head`, each
with `.weight` and, where the spec has one, `.bias`. Matrices are `[outputs, inputs]`, so `down.weight` is
`[hidden, neurons]`.
"""

from __future__ import annotations

import math

from hybrid.spec import ModelSpec

Shape = tuple[int, ...]


def tensor_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor of the model, in the order of the computation."""
    shapes: dict[str, Shape] = {"embed.weight": (spec.vocab_size, spec.hidden_size)}
    if spec.positions == "learned":
        shapes["positions.weight"] = (spec.max_positions + spec.position_offset, spec.hidden_size)
    for layer in range(spec.n_layers):
        shapes |= _layer_shapes(spec, f"layers.{layer}")
    shapes |= _norm_shapes(spec, "final_norm")
    if not spec.tied_embeddings:
        shapes["head.weight"] = (spec.vocab_size, spec.hidden_size)
    return shapes


def parameter_count(spec: ModelSpec) -> int:
    """Weights of the model, those that are tied counted once."""
    return sum(math.prod(shape) for shape in tensor_shapes(spec).values())


def neuron_tensors(spec: ModelSpec, layer: int) -> dict[str, Shape]:
    """Those of one layer that are kept per neuron: gate, up and down matrices, and the bias of up."""
    prefix, hidden, neurons = f"layers.{layer}", spec.hidden_size, spec.n_neurons
    shapes: dict[str, Shape] = {f"{prefix}.gate.weight": (neurons, hidden)} if spec.gated else {}
    shapes |= {f"{prefix}.up.weight": (neurons, hidden), f"{prefix}.down.weight": (hidden, neurons)}
    if spec.ffn_bias:
        shapes[f"{prefix}.up.bias"] = (neurons,)
    return shapes


def dense_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Those that every token reads whole: all but the neurons'."""
    neurons = {name for layer in range(spec.n_layers) for name in neuron_tensors(spec, layer)}
    return {name: shape for name, shape in tensor_shapes(spec).items() if name not in neurons}


def _layer_shapes(spec: ModelSpec, prefix: str) -> dict[str, Shape]:
    hidden, q, kv = spec.hidden_size, spec.q_size, spec.kv_size
    shapes = _norm_shapes(spec, f"{prefix}.attn_norm")
    for name, shape in {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}.items():
        shapes[f"{prefix}.{name}.weight"] = shape
        if name in spec.biased_projections:
            shapes[f"{prefix}.{name}.bias"] = shape[:1]
    if spec.qk_norm:
        shapes |= {f"{prefix}.{name}.weight": (spec.head_dim,) for name in ("q_norm", "k_norm")}
    if not spec.shared_norm:
        shapes |= _norm_shapes(spec, f"{prefix}.ffn_norm")
    shapes |= neuron_tensors(spec, int(prefix.rpartition(".")[2]))
    if spec.ffn_bias:
        shapes[f"{prefix}.down.bias"] = (hidden,)
    return shapes


def _norm_shapes(spec: ModelSpec, name: str) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}.weight": (spec.hidden_size,)}
    if spec.norm == "layer":
        shapes[f"{name}.bias"] = (spec.hidden_size,)
    return shapes
