"""What a model family is: how its checkpoints name settings, activations and tensors; `families` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hybrid.spec import Activation

# As transformers calls them.
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "relu": "relu",
        "relu2": "relu2",
        "silu": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
    }
)


@dataclass(frozen=True)
class Family:
    """One architecture, or one of its layouts.

    keys: ModelSpec field -> key of config.json. defaults: key -> value where config.json has none. only: key -> the one
    value that is supported. fixed: ModelSpec fields that are the same for all its models. modules: this project's name
    of a module -> the checkpoint's; `{i}` is the layer. when: key -> values of it that mark this layout among those of
    its architecture. activations: what config.json says -> what it means. fused_heads: q, k and v are one module, group
    by group: the queries that share a key head, that key head, its value head. norm_shift: what the model adds to the
    weights of its norms. layered_window: config.json says which layers have the sliding window. paired_heads: the rows
    of q and k stand in the order of a model that rotates neighbours, as llama.cpp has them.
    """

    name: str
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    modules: Mapping[str, str]
    only: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    activations: Mapping[str, Activation] = field(default_factory=lambda: ACTIVATIONS)
    fused_heads: bool = False
    norm_shift: float = 0.0
    layered_window: bool = False
    paired_heads: bool = False

    def __post_init__(self) -> None:
        for name in ("keys", "defaults", "fixed", "modules", "only", "when", "activations"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether `config.json` describes this layout."""
        return all(config.get(key, self.defaults.get(key)) in values for key, values in self.when.items())
