"""The profile of a model: how often each neuron fired on a text. Written once by `hybrid profile`, read by placement.

Arrays are indexed by neuron id, never by row, so that a profile survives every reordering and change of format.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import save

from profiler.artifacts import UserError, check_version, write_atomic

PROFILE_VERSION = 1
Counts = npt.NDArray[np.int64]
COUNT_NAMES = ("active", "named", "union4", "union16")
ARRAY_NAMES = (*COUNT_NAMES, "documents")


@dataclass(frozen=True)
class Profile:
    """Counts over `tokens` tokens of one text, `[layers, neurons]` each.

    active: tokens for which the neuron's activation was not zero (or above the layer's threshold).
    named: tokens for which the layer's predictor named the neuron; zeros where there is no predictor.
    union4, union16: windows of 4 and 16 consecutive tokens in which it was active at least once, times the window's
    length, so that all counts divide by `tokens`: the rows that a batch of that size must read.
    documents: of the text, 64-bit digests in rising order, so that an evaluation can say which of its documents were
    counted or trained on; empty where that was not recorded.
    """

    source_digest: str
    corpus_digest: str
    tokens: int
    active: Counts
    named: Counts
    union4: Counts
    union16: Counts
    thresholds: tuple[float, ...] = field(default=())
    has_predictors: bool = False
    documents: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def __post_init__(self) -> None:
        shape = self.active.shape
        if self.active.ndim != 2 or self.tokens <= 0:
            raise UserError("a profile holds [layers, neurons] counts of at least one token")
        for name in COUNT_NAMES:
            counts = getattr(self, name)
            if counts.shape != shape or counts.dtype != np.int64:
                raise UserError(f"profile: {name} should be int64 of shape {list(shape)}, as the other counts are")
            if counts.size and (counts.min() < 0 or counts.max() > self.tokens):
                raise UserError(f"profile: {name} holds counts outside 0..{self.tokens} tokens")
        if self.documents.ndim != 1 or self.documents.dtype != np.uint64:
            raise UserError("profile: the digests of documents should be a list of 64-bit numbers")

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.active.shape[0])

    @property
    def neurons(self) -> int:
        """Neurons of one layer."""
        return int(self.active.shape[1])

    def frequency(self, counts: str = "active") -> npt.NDArray[np.float64]:
        """Share of tokens per neuron, `[layers, neurons]`, of one of the counts by name."""
        values: Counts = getattr(self, counts)
        return values / self.tokens

    def hottest_first(self, layer: int) -> npt.NDArray[np.int32]:
        """Neuron ids of a layer by falling count, ties by id: the row order that `hybrid profile` writes."""
        order = np.argsort(-self.active[layer], kind="stable")
        return order.astype(np.int32)


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile as safetensors, atomically."""
    body = {k: v for k, v in asdict(profile).items() if k not in ARRAY_NAMES}
    metadata = {"kind": "profile", "format_version": str(PROFILE_VERSION), "profile": json.dumps(body)}
    write_atomic(path, save({name: getattr(profile, name) for name in ARRAY_NAMES}, metadata))


def read_profile(path: Path, mend: str = "hybrid profile DIR --text FILE") -> Profile:
    """Read a profile.

    Raises:
        UserError: missing, damaged, or of another format version; the message names the command `mend`.
    """
    if not path.is_file():
        raise UserError(f"there is no profile at {path}; make one with: {mend}")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in ARRAY_NAMES if name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); make it anew with: {mend}") from error
    if metadata.get("kind") != "profile":
        raise UserError(f"{path} is not a profile; make one with: {mend}")
    version = metadata.get("format_version", "")
    check_version(path, int(version) if version.isdigit() else None, PROFILE_VERSION, mend)
    try:
        body: dict[str, Any] = json.loads(metadata["profile"])
        known = {f.name for f in fields(Profile)} - set(ARRAY_NAMES)
        rest = {k: v for k, v in body.items() if k in known}
        rest["thresholds"] = tuple(float(t) for t in rest.get("thresholds", ()))
        return Profile(**arrays, **rest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); make it anew with: {mend}") from error
