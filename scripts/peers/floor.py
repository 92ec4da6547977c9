"""The least that a token must read, by one fixed formula, and the rate at which memory gives it: the floor of its time.

Weights count in the format they are stored in, and only those a perfect program would read: attention, norms, head, one
row of the embeddings; of the feed-forward network what the mode calls for at the planted activity; the predictor; the
keys and values at the mean context. What an engine reads beyond that does not raise the floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from hybrid.store.files import ModelFiles
from hybrid.store.layout import PADDING
from hybrid.store.manifest import DENSE_FILE
from profiler.formats import vector_bytes
from profiler.predictor_header import read_outlines

BANDWIDTH_BYTES = 2 << 30
FP32, F16 = 4, 2
ONE_ROW = ("embed.weight", "positions.weight")  # of these a token reads one row


def floor_bytes(path: Path, mode: str, active: float, context: float) -> float:
    """Bytes per token of a model directory in `mode` (dense, exact, predicted).

    active: share of the neurons whose activation is not zero. context: positions attended to, on average.
    """
    files = ModelFiles.open_files(path)
    spec = files.spec
    neurons, parts = spec.n_layers * spec.n_neurons, len(spec.row_parts)
    vector = vector_bytes(files.weight_format, spec.hidden_size)
    bias = FP32 if spec.ffn_bias else 0
    rows = {
        "dense": neurons * (parts * vector + bias),
        "exact": neurons * (vector + bias) + active * neurons * (parts - 1) * vector,
        "predicted": active * neurons * (parts * vector + bias),
    }[mode]
    predictors = read_outlines(files.predictors_path("default")).nbytes if mode == "predicted" else 0
    kv = context * spec.n_layers * 2 * spec.kv_size * F16
    return dense_bytes(files) + rows + predictors + kv


def dense_bytes(files: ModelFiles) -> float:
    """Bytes of what every token reads whole: attention, norms, biases, head, and one row of the embeddings."""
    total = 0.0
    for entry in files.manifest.layouts[DENSE_FILE].entries:
        if entry.name in ONE_ROW:
            total += entry.nbytes / entry.shape[0]
        elif not entry.name.startswith(PADDING):
            total += entry.nbytes
    if files.spec.tied_embeddings:
        total += files.manifest.layouts[DENSE_FILE].entry("embed.weight").nbytes
    return total


def peer_bytes(path: Path, context: float) -> float:
    """Bytes per token of a program that computes everything, in the same format."""
    return floor_bytes(path, "dense", 1.0, context)


class Bandwidth:
    """The fastest that this machine's memory was read so far, in bytes per second, over memory no cache can hold."""

    def __init__(self, threads: int, size: int = BANDWIDTH_BYTES) -> None:
        self.best = 0.0
        self._words = np.ones(size // 8, np.int64)  # written, so that every page is there
        self._tensor = torch.from_numpy(self._words)
        self._threads = threads

    def measure(self, tries: int = 3) -> float:
        """Sum all of it some more times, by numpy and by torch with all threads; the best of these."""
        fastest = 0.0
        pieces = np.array_split(self._words, 4 * self._threads)
        torch.set_num_threads(self._threads)
        with ThreadPoolExecutor(self._threads) as executor:
            sums: list[Callable[[], object]] = [lambda: list(executor.map(np.sum, pieces)), self._tensor.sum]
            for call in sums * tries:
                began = time.perf_counter()
                call()
                fastest = max(fastest, self._words.nbytes / (time.perf_counter() - began))
        self.best = max(self.best, fastest)
        return fastest
