"""`Capture`: keeps a sample of a text's hidden states and activations, to train and measure predictors with."""

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
    """samples: training tokens. heldout: tokens for calibration, and again for the test. memory: bytes, all layers."""

    samples: int = 32_768
    heldout: int = 4096
    memory: int = 4 << 30

    def __post_init__(self) -> None:
        if min(self.samples, self.heldout) < MINIMUM_TOKENS:
            raise UserError(f"predictors need at least {MINIMUM_TOKENS} tokens to train on and to measure on")


class Capture:
    """A tap that keeps a uniform sample of the tokens of a text whose length is known beforehand.

    Whole documents are held out, a tenth of the text for calibration and a tenth for the test. A document longer than a
    twentieth of the text is cut, and its pieces count as documents.

    Args:
        documents: tokens of each document, in the order in which they will come.
        layers: number of layers.
        hidden: elements of a hidden state.
        neurons: neurons of one layer.
        limits: how much is kept.
        seed: of the choice of documents and tokens.
        row_to_id: per layer the neuron id of every row; None where rows stand in the order of ids.

    Raises:
        UserError: the text is too short, or the memory too small, for predictors worth having.

    """

    def __init__(
        self,
        documents: Sequence[int],
        layers: int,
        hidden: int,
        neurons: int,
        limits: CaptureLimits | None = None,
        seed: int = 0,
        row_to_id: Sequence[npt.NDArray[np.integer]] | None = None,
    ) -> None:
        limits = limits or CaptureLimits()
        generator = np.random.default_rng(seed)
        roles = _assign_roles(documents, generator)
        available = [np.flatnonzero(roles == role) for role in range(len(ROLES))]
        counts = _sample_counts([len(a) for a in available], layers, self.bytes_per_token(hidden, neurons), limits)
        self._picks = [np.sort(generator.permutation(a)[:n]) for a, n in zip(available, counts, strict=True)]
        self._total = sum(documents)
        self._seen = [0] * layers
        self._orders = None if row_to_id is None else [torch.from_numpy(np.argsort(ids)) for ids in row_to_id]
        self._samples = [
            [
                Split(
                    torch.zeros((n, hidden), dtype=torch.bfloat16), torch.zeros((n, neurons), dtype=torch.float8_e5m2)
                )
                for n in counts
            ]
            for _ in range(layers)
        ]

    @staticmethod
    def bytes_per_token(hidden: int, neurons: int) -> int:
        """Bytes that a sampled token takes per layer: its hidden state in 16 bits, one byte per neuron."""
        return 2 * hidden + neurons

    @property
    def nbytes(self) -> int:
        """Bytes that the samples take, at most `limits.memory`."""
        return sum(s.hidden.nbytes + s.magnitude.nbytes for layer in self._samples for s in layer)

    def document(self) -> None:
        """Nothing: where documents begin is known from the start."""

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """Keep the sampled ones of a layer's next tokens; see `profiler.tap.Tap`.

        Raises:
            UserError: a sampled hidden state or activation is not a finite number.
        """
        start = self._seen[layer]
        self._seen[layer] = end = start + len(hidden)
        assert end <= self._total, "more tokens than the documents have"
        for picks, split in zip(self._picks, self._samples[layer], strict=True):
            first, last = (int(i) for i in np.searchsorted(picks, (start, end)))
            if first == last:
                continue
            here = torch.from_numpy(picks[first:last] - start)
            states, values = hidden[here.to(hidden.device)], activation[here.to(activation.device)]
            if not (torch.isfinite(states).all() and torch.isfinite(values).all()):
                raise UserError(
                    f"layer {layer} computed values that are not finite numbers: "
                    "the checkpoint is damaged, or its activations are beyond the range of its format"
                )
            magnitude = encode_magnitude(values).cpu().view(torch.uint8)
            split.hidden[first:last] = states.to("cpu", torch.bfloat16)
            order = slice(None) if self._orders is None else self._orders[layer]
            split.magnitude.view(torch.uint8)[first:last] = magnitude[:, order]

    def samples(self, layer: int) -> LayerSamples:
        """A layer's samples, once the whole text has been seen."""
        assert self._seen[layer] == self._total, "the whole text comes first"
        return LayerSamples(*self._samples[layer])


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


def _sample_counts(available: list[int], layers: int, token_bytes: int, limits: CaptureLimits) -> list[int]:
    """Tokens to keep per role, at most a quarter of the memory for those held out."""
    if available[0] < MINIMUM_TOKENS:
        raise UserError(
            f"predictors need at least {2 * MINIMUM_TOKENS} tokens of text, better 50000, "
            f"and there are {sum(available)}: give a longer text"
        )
    room = limits.memory // (layers * token_bytes)
    heldout = [min(limits.heldout, n, room // 8) for n in available[1:]]
    train = min(limits.samples, available[0], room - sum(heldout))
    if train < MINIMUM_TOKENS:
        needed = format_size(2 * MINIMUM_TOKENS * layers * token_bytes)
        raise UserError(
            f"{format_size(limits.memory)} of memory hold {train} tokens of {layers} layers; allow at least {needed}"
        )
    return [train, *heldout]
