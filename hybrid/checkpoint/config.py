"""`config.json` to `ModelSpec`: every key checked for its type here, every range by the spec itself."""

from __future__ import annotations

from typing import Any

from hybrid.checkpoint.families import FAMILIES
from hybrid.checkpoint.family import Family
from hybrid.spec import Activation, Llama3Scaling, ModelSpec
from profiler.artifacts import UserError

INTEGERS = ("vocab_size", "hidden_size", "n_layers", "n_heads", "max_positions")
NUMBERS = ("norm_eps", "activation_cutoff")
FLAGS = ("attention_bias", "ffn_bias", "tied_embeddings", "parallel")
OPTIONAL_INTEGERS = ("n_kv_heads", "head_dim", "sliding_window")
FFN_WIDTH = 4  # times the hidden size, of families whose config.json need not say


def read_config(config: dict[str, Any]) -> tuple[Family, ModelSpec]:
    """The family and the spec that a `config.json` describes.

    Raises:
        UserError: the architecture, the activation or an option is not supported, a key is missing or has a wrong type.
    """
    family = _family(config)
    if config.get("quantization_config") or config.get("compression_config"):
        raise UserError("config.json: this checkpoint is already quantised; pack the 16-bit original")
    for key, supported in family.only.items():
        if config.get(key, supported) != supported:
            raise UserError(
                f"config.json: {key} is {_shown(config[key])}; only models where it is {supported} are supported"
            )
    reader = _Reader(config, family)
    values: dict[str, Any] = {field: reader.integer(field) for field in INTEGERS}
    values |= {field: reader.flag(field) for field in FLAGS if field in family.keys}
    values |= {field: reader.optional_integer(field) for field in OPTIONAL_INTEGERS if field in family.keys}
    values["n_neurons"] = _ffn_width(reader, values["hidden_size"])
    values["activation"] = _activation(reader, family)
    values |= {field: reader.number(field) for field in NUMBERS if field in family.keys}
    values |= dict(family.fixed)
    if values.get("n_kv_heads") is None:
        values["n_kv_heads"] = values["n_heads"]
    if values.get("head_dim") is None:
        values["head_dim"] = _head_dim(values["hidden_size"], values["n_heads"])
    if values["positions"] == "rope":
        values |= _rope(reader, values["max_positions"], values["head_dim"])
    if family.layered_window:
        values["sliding_window"] = _window(config, values["sliding_window"], values["n_layers"])
    projected = config.get("word_embed_proj_dim")
    if family.name == "opt" and projected is not None and projected != values["hidden_size"]:
        raise UserError(
            f"config.json: word_embed_proj_dim {_shown(projected)} differs from hidden_size {values['hidden_size']}: "
            "models that project their embeddings (such as opt-350m) are not supported"
        )
    return family, ModelSpec(family=family.name, **values)


class _Reader:
    """Values of config.json by ModelSpec field, with the family's defaults, of one type each."""

    def __init__(self, config: dict[str, Any], family: Family) -> None:
        self.config, self.family = config, family

    def value(self, field: str) -> tuple[str, Any]:
        key = self.family.keys[field]
        if key in self.config:
            return key, self.config[key]
        if key in self.family.defaults:
            return key, self.family.defaults[key]
        raise UserError(f"config.json has no {key}; is it whole? Download the checkpoint again")

    def integer(self, field: str) -> int:
        return _integer(*self.value(field))

    def optional_integer(self, field: str) -> int | None:
        key, value = self.value(field)
        return None if value is None else _integer(key, value)

    def flag(self, field: str) -> bool:
        key, value = self.value(field)
        if not isinstance(value, bool):
            raise UserError(f"config.json: {key} is {_shown(value)}; true or false is expected")
        return value

    def number(self, field: str) -> float:
        return _number(*self.value(field))


def _family(config: dict[str, Any]) -> Family:
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else [architectures]
    for name in names:
        if isinstance(name, str) and name in FAMILIES:
            return _layout(config, name)
    raise UserError(
        f"config.json: architecture {', '.join(map(_shown, names))} is not supported; "
        f"supported are {', '.join(FAMILIES)}"
    )


def _layout(config: dict[str, Any], architecture: str) -> Family:
    layouts = FAMILIES[architecture]
    for family in layouts:
        if family.matches(config):
            return family
    settings = {key: config.get(key, layouts[0].defaults.get(key)) for family in layouts for key in family.when}
    shown = ", ".join(f"{key} {_shown(value)}" for key, value in settings.items())
    raise UserError(f"config.json: {architecture} with {shown} is not supported")


def _activation(reader: _Reader, family: Family) -> Activation:
    key, value = reader.value("activation")
    if not isinstance(value, str) or value not in family.activations:
        known = ", ".join(family.activations)
        raise UserError(f"config.json: {key} {_shown(value)} is not supported; supported are {known}")
    return family.activations[value]


def _ffn_width(reader: _Reader, hidden: int) -> int:
    key, value = reader.value("n_neurons")
    optional = key in reader.family.defaults
    return FFN_WIDTH * hidden if optional and value is None else _integer(key, value)


def _window(config: dict[str, Any], window: int | None, layers: int) -> int | None:
    """The sliding window of a family whose layers may have it or not, where all of them are alike."""
    used, kinds = config.get("use_sliding_window", False), config.get("layer_types")
    if not isinstance(used, bool):
        raise UserError(f"config.json: use_sliding_window is {_shown(used)}; true or false is expected")
    if kinds is None:
        full = _integer("max_window_layers", config.get("max_window_layers", 28)) if used else layers
        without = max(0, min(full, layers))
    else:
        named = kinds if isinstance(kinds, list) and len(kinds) == layers else []
        without = named.count("full_attention")
        if without + named.count("sliding_attention") != layers:
            raise UserError(f"config.json: layer_types is {_shown(kinds)}; one kind of attention a layer is expected")
    if without == layers or (used and window is None):
        return None
    if without or not used:
        raise UserError(
            f"config.json: layer_types or max_window_layers give the sliding window to {layers - without} of {layers} "
            f"layers, and use_sliding_window is {used}; supported are models with it in all layers or in none"
        )
    return window


def _head_dim(hidden: int, heads: int) -> int:
    if heads < 1 or hidden % heads:
        raise UserError(f"config.json: a hidden size of {hidden} does not divide into {heads} heads")
    return hidden // heads


def _rope(reader: _Reader, max_positions: int, head_dim: int) -> dict[str, Any]:
    """Rotary settings, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` before it."""
    config, parameters = reader.config, dict[str, Any]()
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"config.json: {key} is {_shown(value)}; an object is expected")
        parameters |= value or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UserError("config.json: rotary settings that differ between layers are not supported")
    theta = parameters.get("rope_theta", config.get(reader.family.keys.get("rope_theta", "rope_theta"), 10000.0))
    rotary_dims = _rotary_dims(reader, parameters, head_dim)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "llama3", None):
        raise UserError(f"config.json: rope scaling of type {_shown(kind)} is not supported, only llama3")
    scaling = None
    if kind == "llama3":
        missing = [k for k in ("factor", "low_freq_factor", "high_freq_factor") if k not in parameters]
        if missing:
            raise UserError(f"config.json: rope scaling of type 'llama3' lacks {', '.join(missing)}")
        original = parameters.get("original_max_position_embeddings", max_positions)
        scaling = Llama3Scaling(
            factor=_number("rope factor", parameters["factor"]),
            low_freq_factor=_number("low_freq_factor", parameters["low_freq_factor"]),
            high_freq_factor=_number("high_freq_factor", parameters["high_freq_factor"]),
            original_positions=_integer("original_max_position_embeddings", original),
        )
    return {"rope_theta": _number("rope_theta", theta), "rope_scaling": scaling, "rotary_dims": rotary_dims}


def _rotary_dims(reader: _Reader, parameters: dict[str, Any], head_dim: int) -> int | None:
    """The part of each head that is rotated, None for all of it."""
    key = reader.family.keys.get("rotary_dims", "partial_rotary_factor")
    share = parameters.get("partial_rotary_factor", reader.config.get(key, reader.family.defaults.get(key)))
    if share in (None, 1):
        return None
    if "rotary_dims" not in reader.family.keys:
        raise UserError(f"config.json: {key} {_shown(share)} is not supported, only 1")
    number = _number(key, share)
    if not 0 < number < 1:
        raise UserError(f"config.json: {key} {_shown(share)} is out of range; a share of each head is expected")
    return int(number * head_dim)


def _integer(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value.bit_length() > 63:
        raise UserError(f"config.json: {key} is {_shown(value)}; a whole number is expected")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"config.json: {key} is {_shown(value)}; a number is expected")
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"config.json: {key} is larger than any number") from error


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 1000 else "an enormous number"
    return text if len(text) <= 60 else f"{text[:57]}..."
