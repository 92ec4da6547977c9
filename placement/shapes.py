"""Models that are not here, as shapes: the sizes of the papers' models, and how active their neurons are.

The figures stand in `papers.json`, each group with its source. With them a plan can be made and its speed predicted
without a model directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.plan import MOST_ROWS, check_number, check_whole
from placement.skewed import firing_shares, skewed_frequencies
from profiler.artifacts import UserError
from profiler.formats import vector_bytes

PAPERS = Path(__file__).parent / "papers.json"
FP16, FP32 = 2, 4


@dataclass(frozen=True)
class ModelShape:
    """A model as published.

    active: share of FFN neurons that are active in a token. hot_share: of neurons that 80 % of the activations come
    from. predictor_share: the predictors' weights over the model's. named_over_active: rows that predictors name over
    rows that are active.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool
    tied: bool
    active: float
    hot_share: float
    predictor_share: float
    named_over_active: float = 1.0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab"):
            check_whole(name, getattr(self, name), 1, MOST_ROWS)
        for name in ("active", "hot_share", "predictor_share"):
            check_number(name, getattr(self, name), 1.0)
        check_number("named_over_active", self.named_over_active, 100.0)

    @property
    def row_weights(self) -> int:
        """Weights of one neuron: gate, up and down, or up and down."""
        return (3 if self.gated else 2) * self.hidden

    @property
    def attention_weights(self) -> int:
        """Weights of one layer's four projections."""
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim

    @property
    def weights(self) -> int:
        """All weights but those of norms and biases."""
        tables = 1 if self.tied else 2
        return self.layers * (self.attention_weights + self.ffn * self.row_weights) + tables * self.vocab * self.hidden

    def sizes(
        self, weight_format: str = "f16", *, predictors: bool = True, neurons_per_row: int = 1, kv_bytes: int = FP16
    ) -> ModelSizes:
        """The model in bytes, without biases and work buffers, predictors in the weights' format.

        neurons_per_row: neurons that are placed as one row, where rows one by one would only cost time. kv_bytes: of a
        key's or a value's number.

        Raises:
            UserError: rows of so many neurons do not make up the FFN, or vectors of the format the hidden size.
        """
        if self.ffn % neurons_per_row:
            raise UserError(f"{self.ffn} neurons are not a whole number of rows of {neurons_per_row}")
        vector = vector_bytes(weight_format, self.hidden)
        predictor = 0
        if predictors:
            weights = self.predictor_share * self.weights / self.layers
            predictor = round(weights / self.hidden * vector)
        table = self.vocab * vector
        norm = self.hidden * FP32
        return ModelSizes(
            n_layers=self.layers,
            n_rows=self.ffn // neurons_per_row,
            row_bytes=(3 if self.gated else 2) * vector * neurons_per_row,
            gated=self.gated,
            weight_format=weight_format,
            attention_bytes=(self.attention_weights // self.hidden * vector + 2 * norm,) * self.layers,
            predictor_bytes=(predictor,) * self.layers,
            embeddings_bytes=table,
            head_bytes=0 if self.tied else table,
            final_norm_bytes=norm,
            kv_bytes_per_token=2 * self.kv_heads * self.head_dim * kv_bytes,
            buffer_bytes=0,
        )

    def frequencies(self, *, neurons_per_row: int = 1) -> Frequencies:
        """How often rows are needed: the same power law in every layer, hottest first; a row is its neurons' mean."""
        shares = firing_shares(self.ffn, self.active, self.hot_share).reshape(-1, neurons_per_row).mean(axis=1)
        return skewed_frequencies(self.layers, shares, self.named_over_active)


def shipped_shapes() -> tuple[str, ...]:
    """Names that `read_shape` knows."""
    return tuple(papers()["models"])


def read_shape(name: str) -> ModelShape:
    """A model of the papers.

    Raises:
        UserError: no model of that name.
    """
    models = papers()["models"]
    if name not in models:
        raise UserError(f"no shape is named {name!r:.80}; known are {', '.join(models)}")
    return shape_of(name, models[name])


def shape_of(name: str, groups: dict[str, dict[str, Any]]) -> ModelShape:
    """A model from groups of figures, each with its source."""
    return ModelShape(name=name, **figures(groups))


def figures(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of several groups together, without their sources."""
    return {name: value for group in groups.values() for name, value in group.items() if name != "source"}


@cache
def papers() -> dict[str, Any]:
    """All inputs and results of the papers."""
    body: dict[str, Any] = json.loads(PAPERS.read_text(encoding="utf-8"))
    return body
