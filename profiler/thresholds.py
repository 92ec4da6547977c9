"""Thresholds of a model: for each layer the magnitude up to which its activations count as zero, calibrated on a text.

Threshold sparsity (CATS, Lee et al. 2024): every gate is computed, and the neurons whose |act(gate)| is at most their
layer's cutoff are left out. It is lossy, so what it costs belongs to the file, once that is measured.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from profiler.artifacts import UserError, digest_json, from_json, read_json, write_json
from profiler.quality import LARGEST_WHOLE, Interval

THRESHOLDS_VERSION = 2  # version 1, which is read too, names no documents
SIZE_LIMIT = 32 << 20
MOST_LAYERS = 1 << 10
MOST_DOCUMENTS = 1 << 20  # of 22 bytes each in the file
DOCUMENT_DIGEST = re.compile("[0-9a-f]{16}")
LARGEST_CUTOFF = 3e38  # fp32 holds it
MEND = "hybrid calibrate DIR --text FILE --sparsity 0.5"


@dataclass(frozen=True)
class LayerThreshold:
    """One layer. cutoff: of |act(gate)|, or without a gate of |act(up)|. On text apart from that which set it, over
    tokens and neurons: active, the share above it; mass_kept, their share of the summed |act(gate) · up|.
    """

    cutoff: float
    active: float
    mass_kept: float

    def __post_init__(self) -> None:
        _check_number("cutoff", self.cutoff, LARGEST_CUTOFF)
        _check_number("active", self.active, 1)
        _check_number("mass_kept", self.mass_kept, 1)


@dataclass(frozen=True)
class Loss:
    """What thresholds cost on a text of `tokens` predicted tokens: perplexity in dense mode and with them, and their
    ratio with its interval over documents, None where there are too few of them. text: its names.
    """

    text: str
    tokens: int
    dense_perplexity: float
    perplexity: float
    ratio: float
    interval: Interval | None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or len(self.text) > 10_000:
            raise UserError("thresholds: the loss is measured on a text that has a name")
        _check_whole("tokens of the loss", self.tokens)
        for name in ("dense_perplexity", "perplexity", "ratio"):
            _check_number(name, getattr(self, name), math.inf)


@dataclass(frozen=True)
class Thresholds:
    """Cutoffs of every layer, and what they were made from.

    source_digest: of the model's weights, whatever their format. text_digest: of the text. tokens: that set the
    cutoffs; heldout_tokens: that checked them. sparsity: the share of inactive neurons that was asked for, or budget:
    the share of perplexity that could be lost. loss: None until it is measured. documents: of the text, 64-bit digests
    in hexadecimal, so that an evaluation can say which of its documents had set the cutoffs; empty where that was not
    recorded.
    """

    source_digest: str
    text_digest: str
    tokens: int
    heldout_tokens: int
    layers: tuple[LayerThreshold, ...]
    sparsity: float | None = None
    budget: float | None = None
    loss: Loss | None = None
    documents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.source_digest, str) or not isinstance(self.text_digest, str):
            raise UserError("thresholds: digests are texts")
        _check_whole("tokens", self.tokens)
        _check_whole("held-out tokens", self.heldout_tokens)
        if not 1 <= len(self.layers) <= MOST_LAYERS:
            raise UserError("thresholds: a cutoff for each layer is expected")
        if (self.sparsity is None) == (self.budget is None):
            raise UserError("thresholds: either a sparsity or a budget was asked for")
        if self.sparsity is not None:
            _check_number("sparsity", self.sparsity, 1)
        if self.budget is not None:
            _check_number("budget", self.budget, math.inf)
        if len(self.documents) > MOST_DOCUMENTS:
            raise UserError(f"thresholds name {MOST_DOCUMENTS:,} documents at most: calibrate on fewer of them")
        if not all(isinstance(digest, str) and DOCUMENT_DIGEST.fullmatch(digest) for digest in self.documents):
            raise UserError("thresholds: digests of documents are 16 hexadecimal digits each")

    @property
    def cutoffs(self) -> tuple[float, ...]:
        """Of each layer."""
        return tuple(layer.cutoff for layer in self.layers)

    @property
    def digest(self) -> str:
        """Of the cutoffs alone: what is measured of them is measured with these."""
        return digest_json(list(self.cutoffs))

    @property
    def active(self) -> float:
        """Share of all neurons that stay active in a token."""
        return sum(layer.active for layer in self.layers) / len(self.layers)


def loss_label(loss: Loss | None, path: Path | str = "DIR") -> str:
    """What anybody who uses thresholds is told; `path` is the model directory, for the command that measures."""
    if loss is None:
        return f"threshold mode, lossy: loss not measured; hybrid eval {path} --mode threshold --text FILE"
    span = ""
    if loss.interval is not None:
        low, high = loss.interval.low - 1, loss.interval.high - 1
        span = f" ({loss.interval.level:.0%} interval {low:+.2%} to {high:+.2%})"
    lost = f"{loss.ratio - 1:+.2%} perplexity{span}"
    return f"threshold mode, lossy: {lost} measured on {loss.tokens:,} tokens of {loss.text}"


def write_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Write thresholds as JSON, atomically."""
    write_json(path, "thresholds", THRESHOLDS_VERSION, asdict(thresholds))


def read_thresholds(path: Path, mend: str = MEND) -> Thresholds:
    """Read thresholds.

    Raises:
        UserError: missing, damaged, or of another format version; the message names the command `mend`.
    """
    if not path.exists():
        raise UserError(f"there are no thresholds at {path}; make them with: {mend}")
    body = read_json(path, "thresholds", THRESHOLDS_VERSION, mend, SIZE_LIMIT, older=(1,))
    if body["format_version"] == 1:
        body["documents"] = []
    try:
        return _thresholds({k: v for k, v in body.items() if k not in ("kind", "format_version")})
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}); make it anew with: {mend}") from error


def _thresholds(body: dict[str, Any]) -> Thresholds:
    """The thresholds of `asdict`, each nested object built, and so checked, before the whole."""
    layers, loss, documents = body.get("layers"), body.get("loss"), body.get("documents")
    if not isinstance(layers, list) or not isinstance(documents, list):
        raise UserError("thresholds: layers and documents should be lists")
    built: dict[str, Any] = {**body, "documents": tuple(documents)}
    built["layers"] = tuple(from_json(LayerThreshold, one, "thresholds") for one in layers)
    if isinstance(loss, dict):
        interval = loss.get("interval")
        loss = {**loss, "interval": None if interval is None else from_json(Interval, interval, "thresholds")}
    built["loss"] = None if loss is None else from_json(Loss, loss, "thresholds")
    return from_json(Thresholds, built, "thresholds")


def _check_number(name: str, value: object, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise UserError(f"thresholds: {name} is {value!r:.40}; a number from 0 to {high:g} is expected")
    if isinstance(value, int) and value > LARGEST_WHOLE:
        raise UserError(f"thresholds: {name} is larger than anything that is measured")


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 60:
        raise UserError(f"thresholds: {name} is {value!r:.40}; a whole number of at least 1 is expected")
