"""Tensors made while others are written: the next ones of a known order, on a thread of their own.

Drawing on a GPU and copying from it need neither the interpreter nor the cores that digests and files keep busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from synthetic.weights import PlantedWeights

DEPTH = 2  # tensors that are made before they are asked for


class Ahead:
    """The tensors of a model, asked for by name, best in the order of `names`. A context manager."""

    def __init__(self, weights: PlantedWeights, names: Sequence[str]) -> None:
        self._weights, self._names = weights, list(names)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="synthetic-ahead")
        self._made: dict[str, Future[torch.Tensor]] = {}
        self._begin(0)

    def tensor(self, name: str) -> torch.Tensor:
        """See `PlantedWeights.tensor`; those that follow `name` are begun."""
        future = self._made.pop(name, None)
        if name in self._names:
            self._begin(self._names.index(name) + 1)
        return self._weights.tensor(name) if future is None else future.result()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _begin(self, first: int) -> None:
        for name in self._names[first : first + DEPTH]:
            if name not in self._made:
                self._made[name] = self._executor.submit(self._weights.tensor, name)
