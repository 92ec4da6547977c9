"""The profile of a model: how often each neuron fired on a text. Written once by `hybrid profile`, read by placement.

Arrays are indexed by neuron id, never by row, so that a profile survives every reordering and change of format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from profiler.artifacts import UserError, write_atomic
from profiler.tensor_file import metadata_of, open_tensors

KIND = "profile"
PROFILE_VERSION = 2  # version 1, which is read too, counts neither domains nor halves, and int64 throughout
Counts = npt.NDArray[np.int64]
Parts = npt.NDArray[np.unsignedinteger[Any]]
COUNT_NAMES = ("active", "named", "union4", "union16")
STORED = ("named", "union4", "union16", "parts", "documents")  # active is the sum of the parts
DOMAIN_LIMIT = 16
TOKEN_LIMIT = 1 << 60
HALVES = 2


@dataclass(frozen=True)
class Profile:
    """Counts over `tokens` tokens of one text or of several, `[layers, neurons]` each.

    active: tokens for which the neuron's activation was not zero (or above the layer's threshold).
    named: tokens for which the layer's predictor named the neuron; zeros where there is no predictor.
    union4, union16: windows of 4 and 16 consecutive tokens in which it was active at least once, times the window's
    length, so that all counts divide by `tokens`: the rows that a batch of that size must read.
    thresholds: of each layer, above which an activation counted; () where every one that is not zero did.
    predictors_digest: of the predictors that named; None where there were none, or a version 1 wrote the file.
    domains: names of the kinds of text. Documents were dealt out to two halves at random: part_tokens are the tokens of
    each domain's halves, and parts, `[domains, 2, layers, neurons]`, what was active in them; None in version 1.
    documents: of the text, 64-bit digests in rising order, so that an evaluation can say which of its documents were
    counted or trained on, or set the predictors' thresholds since; empty where that was not recorded.
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
    predictors_digest: str | None = None
    domains: tuple[str, ...] = ()
    part_tokens: tuple[tuple[int, int], ...] = ()
    parts: Parts | None = None
    documents: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def __post_init__(self) -> None:
        shape = self.active.shape
        if self.active.ndim != 2 or not 0 < self.tokens < TOKEN_LIMIT:
            raise UserError("a profile holds [layers, neurons] counts of at least one token")
        for name in COUNT_NAMES:
            counts = getattr(self, name)
            if counts.shape != shape or counts.dtype != np.int64:
                raise UserError(f"profile: {name} should be int64 of shape {list(shape)}, as the other counts are")
            if counts.size and (counts.min() < 0 or counts.max() > self.tokens):
                raise UserError(f"profile: {name} holds counts outside 0..{self.tokens} tokens")
        if self.documents.ndim != 1 or self.documents.dtype != np.uint64:
            raise UserError("profile: the digests of documents should be a list of 64-bit numbers")
        if len(self.domains) > DOMAIN_LIMIT or len(set(self.domains)) != len(self.domains):
            raise UserError(f"profile: domains have names of their own, and are at most {DOMAIN_LIMIT}")
        if self.parts is not None or self.domains:
            self._check_parts()

    def _check_parts(self) -> None:
        shape = (len(self.domains), HALVES, *self.active.shape)
        if self.parts is None or self.parts.shape != shape or self.parts.dtype.kind != "u":
            raise UserError(f"profile: parts should be whole numbers of shape {list(shape)}")
        tokens = np.array(self.part_tokens, dtype=np.int64).reshape(len(self.part_tokens), -1)
        if tokens.shape != shape[:2] or (tokens < 0).any() or tokens.sum() != self.tokens:
            raise UserError(f"profile: the tokens of the domains' halves should be {self.tokens} altogether")
        if (self.parts > tokens[:, :, None, None]).any():
            raise UserError("profile: parts hold counts beyond the tokens of their half")
        if not np.array_equal(self.parts.sum((0, 1), dtype=np.int64), self.active):
            raise UserError("profile: the parts do not add up to what was active")

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
    """Write a profile as safetensors, atomically. One that has no parts is written as version 1 was."""
    plain = ("source_digest", "corpus_digest", "tokens", "thresholds", "has_predictors")
    body = {name: getattr(profile, name) for name in plain}
    if profile.parts is None:
        version, arrays = 1, {name: getattr(profile, name) for name in (*COUNT_NAMES, "documents")}
    else:
        version, arrays = PROFILE_VERSION, {name: getattr(profile, name) for name in STORED}
        arrays |= {name: compact(arrays[name]) for name in STORED if name != "documents"}
        body |= {name: getattr(profile, name) for name in ("predictors_digest", "domains", "part_tokens")}
    write_atomic(path, save(arrays, metadata_of(KIND, version, body)))


def read_profile(path: Path, mend: str = "hybrid profile DIR --text FILE") -> Profile:
    """Read a profile.

    Raises:
        UserError: missing, damaged, or of another format version; the message names the command `mend`.
    """
    with open_tensors(path, KIND, PROFILE_VERSION, mend, older=(1,)) as file:
        return _from_parts(file.version, file.body, {name: file.read(name) for name in file.names})


def compact(counts: npt.NDArray[np.integer[Any]]) -> Parts:
    """The same counts in the smallest type that holds them."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _from_parts(version: int, body: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Profile:
    counts: dict[str, Counts] = {}
    more: dict[str, Any] = {}
    if version == 1:
        counts = {name: arrays[name] for name in COUNT_NAMES}
        more = {"documents": arrays["documents"]} if "documents" in arrays else {}
    else:
        if any(arrays[name].dtype.kind != "u" for name in STORED):
            raise ValueError("counts are whole numbers from 0 on")
        parts = arrays["parts"]
        counts = {name: arrays[name].astype(np.int64) for name in ("named", "union4", "union16")}
        counts["active"] = parts.sum((0, 1), dtype=np.int64)
        digest = body["predictors_digest"]
        more = {
            "predictors_digest": None if digest is None else str(digest),
            "domains": tuple(map(str, body["domains"])),
            "part_tokens": tuple((int(one), int(other)) for one, other in body["part_tokens"]),
            "parts": parts,
            "documents": arrays["documents"],
        }
    return Profile(
        str(body["source_digest"]),
        str(body["corpus_digest"]),
        body["tokens"],
        active=counts["active"],
        named=counts["named"],
        union4=counts["union4"],
        union16=counts["union16"],
        thresholds=tuple(float(t) for t in body.get("thresholds", ())),
        has_predictors=bool(body.get("has_predictors", False)),
        **more,
    )
