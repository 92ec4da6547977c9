"""Keeps a sample of a text's hidden states and activations, layer by layer, to train and measure predictors with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from profiler.artifacts import UserError, format_size

MINIMUM_TOKENS = 256  # fewer than this train nothing worth having
PIECES = 20  # no piece that is held out as a whole is longer than this part of the text
ROLES = ("train", "calibration", "test")
SMALLEST, LARGEST = 2.0**-16, 57344.0  # positive numbers of float8_e5m2


def encode_magnitude(activation: torch.Tensor) -> torch.Tensor:
    """|activation| as float8 (e5m2: one byte, within 12.5 %). What is not zero stays so; what is too large is cut."""
    magnitude = activation.abs().clamp(max=LARGEST)
    return torch.where(activation == 0, 0.0, magnitude.clamp(min=SMALLEST)).to(torch.float8_e5m2)


@dataclass(frozen=True, eq=False)
class Split:
    """Tokens of one layer. hidden: bfloat16 `[tokens, hidden]`; magnitude: float8 `[tokens, neurons]`, by neuron id."""

    hidden: torch.Tensor
    magnitude: torch.Tensor

    def __post_init__(self) -> None:
        assert self.hidden.dtype == torch.bfloat16, "hidden states in bfloat16"
        assert self.magnitude.dtype == torch.float8_e5m2, "magnitudes as `encode_magnitude` makes them"
        assert self.hidden.ndim == self.magnitude.ndim == 2, "two matrices"
        assert len(self.hidden) == len(self.magnitude), "one magnitude per hidden state and neuron"

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.hidden)

    def rows(self, index: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Some tokens as fp32: hidden `[n, hidden]` and |activation| `[n, neurons]`."""
        magnitude = self.magnitude.view(torch.uint8)[index].view(torch.float8_e5m2)
        return self.hidden[index].float(), magnitude.float()


@dataclass(frozen=True, eq=False)
class LayerSamples:
    """One layer's samples: `train`, and from other documents `calibration` (the threshold) and `test` (the report)."""

    train: Split
    calibration: Split
    test: Split


@dataclass(frozen=True)
class CaptureLimits:
    """samples: training tokens. heldout: tokens for calibration, and again for the test. memory: bytes, one layer."""

    samples: int = 32_768
    heldout: int = 4096
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        if min(self.samples, self.heldout) < MINIMUM_TOKENS:
            raise UserError(f"predictors need at least {MINIMUM_TOKENS} tokens to train on and to measure on")

    @property
    def tokens(self) -> int:
        """Tokens of text that give so many samples: a tenth of it is held out for calibration and a tenth for tests."""
        return max(self.samples * 10 // 8, self.heldout * 10)


def bytes_per_token(hidden: int, neurons: int) -> int:
    """Bytes that a sampled token takes: its hidden state in 16 bits, one byte per neuron."""
    return 2 * hidden + neurons


class Sampling:
    """Which tokens of a text are kept, the same ones in every layer: a uniform sample.

    Whole documents are held out, a tenth of the text for calibration and a tenth for the test. A document longer than a
    twentieth of the text is cut, and its pieces count as documents.

    Args:
        documents: tokens of each document, in the order in which they will come.
        token_bytes: of a sampled token; see `bytes_per_token`.
        limits: how much is kept.
        seed: of the choice of documents and tokens.

    Raises:
        UserError: the text is too short, or the memory too small, for predictors worth having.

    """

    def __init__(
        self, documents: Sequence[int], token_bytes: int, limits: CaptureLimits | None = None, seed: int = 0
    ) -> None:
        generator = np.random.default_rng(seed)
        roles = _assign_roles(documents, generator)
        available = [np.flatnonzero(roles == role) for role in range(len(ROLES))]
        counts = _sample_counts([len(a) for a in available], token_bytes, limits or CaptureLimits())
        self.tokens = sum(documents)
        self.nbytes = sum(counts) * token_bytes
        self.picks = [np.sort(generator.permutation(a)[:n]) for a, n in zip(available, counts, strict=True)]


class Capture:
    """Keeps the sampled tokens of one layer.

    Args:
        sampling: which tokens.
        hidden: elements of a hidden state.
        neurons: neurons of the layer.
        row_to_id: the neuron id of every row; None where rows stand in the order of ids.

    """

    def __init__(
        self, sampling: Sampling, hidden: int, neurons: int, row_to_id: npt.NDArray[np.integer] | None = None
    ) -> None:
        self._sampling, self._seen = sampling, 0
        self._order = slice(None) if row_to_id is None else torch.from_numpy(np.argsort(row_to_id))
        self._splits = [
            Split(
                torch.zeros((len(picks), hidden), dtype=torch.bfloat16),
                torch.zeros((len(picks), neurons), dtype=torch.float8_e5m2),
            )
            for picks in sampling.picks
        ]

    def add(self, hidden: torch.Tensor, activation: torch.Tensor) -> None:
        """Keep the sampled ones of the next tokens.

        Args:
            hidden: fp32 `[tokens, hidden]`, what the FFN and its predictor read.
            activation: fp32 `[tokens, rows]`, what multiplies the down vectors.

        """
        start = self._seen
        self._seen = end = start + len(hidden)
        assert end <= self._sampling.tokens, "more tokens than the documents have"
        for picks, split in zip(self._sampling.picks, self._splits, strict=True):
            first, last = (int(i) for i in np.searchsorted(picks, (start, end)))
            if first == last:
                continue
            here = torch.from_numpy(picks[first:last] - start)
            magnitude = encode_magnitude(activation[here]).view(torch.uint8)
            split.hidden[first:last] = hidden[here].bfloat16()
            split.magnitude.view(torch.uint8)[first:last] = magnitude[:, self._order]

    def samples_of(self, earlier: torch.Tensor) -> LayerSamples:
        """The samples with other states, fp32 `[tokens, hidden]` of all tokens, in the place of what the FFN read."""
        picked = [earlier[torch.from_numpy(picks)].bfloat16() for picks in self._sampling.picks]
        own = self.samples()
        parts = zip(picked, (own.train, own.calibration, own.test), strict=True)
        return LayerSamples(*(Split(states, split.magnitude) for states, split in parts))

    def samples(self) -> LayerSamples:
        """The samples, once the whole text has been seen."""
        assert self._seen == self._sampling.tokens, "the whole text comes first"
        return LayerSamples(*self._splits)


def _assign_roles(documents: Sequence[int], generator: np.random.Generator) -> npt.NDArray[np.int8]:
    """The role of each token, an index into `ROLES`: whole pieces, drawn until each held-out role has a tenth."""
    total = sum(documents)
    longest = max(1, total // PIECES)
    pieces: list[tuple[int, int]] = []
    at = 0
    for tokens in documents:
        parts = -(-tokens // longest)
        edges = np.linspace(at, at + tokens, parts + 1).astype(np.int64)
        pieces += [(int(a), int(b)) for a, b in itertools.pairwise(edges)]
        at += tokens
    roles = np.zeros(total, dtype=np.int8)
    order = iter(generator.permutation(len(pieces)))
    for role in (1, 2):
        held = 0
        for place in order:
            start, end = pieces[place]
            roles[start:end] = role
            held += end - start
            if held >= total / 10:
                break
    return roles


def _sample_counts(available: list[int], token_bytes: int, limits: CaptureLimits) -> list[int]:
    """Tokens to keep per role, at most a quarter of the memory for those held out."""
    if available[0] < MINIMUM_TOKENS:
        raise UserError(
            f"predictors need at least {2 * MINIMUM_TOKENS} tokens of text, better 50000, "
            f"and there are {sum(available)}: give a longer text, or train none"
        )
    room = limits.memory // token_bytes
    heldout = [min(limits.heldout, n, room // 8) for n in available[1:]]
    train = min(limits.samples, available[0], room - sum(heldout))
    if train < MINIMUM_TOKENS:
        needed = format_size(2 * MINIMUM_TOKENS * token_bytes)
        raise UserError(
            f"{format_size(limits.memory)} of memory hold {train} tokens of a layer; allow at least {needed}"
        )
    return [train, *heldout]
