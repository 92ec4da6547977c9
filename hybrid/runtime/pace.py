"""What a pass costs, learned from those that were computed, and how many prompt tokens that lets a step take. No torch.

A pass of the native operators reads weights, which all tokens share, multiplies them for each token, and reads what
each attends to: nearly a line in the number of tokens, and in the keys that they see. So three numbers are fitted to
the last passes of each size. What is fitted are relative errors: a pass that was disturbed counts for little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RECENT = 8  # passes of each size: what is older is forgotten
REFIT = 4  # passes, after which numbers are fitted anew
PRIOR = 0.02  # by which costs are taken to go by tokens alone, as long as nothing tells otherwise
DISTURBED = 0.25  # relative error from which on a pass counts less


@dataclass(frozen=True)
class Work:
    """Tokens of a pass, and the sum over them of the keys that each attends to."""

    tokens: int
    positions: int


class PassCosts:
    """Seconds of passes."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[tuple[int, float]]] = {}  # positions and seconds by tokens
        self._line: npt.NDArray[np.float64] | None = None  # seconds of a pass, of a token, of a position
        self._new = 0

    def observe(self, work: Work, seconds: float) -> None:
        """A pass took so long."""
        self._seen.setdefault(work.tokens, deque(maxlen=RECENT)).append((work.positions, max(seconds, 1e-9)))
        self._new += 1

    def seconds(self, work: Work) -> float:
        """What a pass is expected to take; 0 as long as nothing was observed, and of no tokens."""
        line = self._fitted()
        return 0.0 if line is None or not work.tokens else float(line @ (1, work.tokens, work.positions))

    def affordable(self, passes: Sequence[Work], position: int, room: int, pace: float) -> int:
        """Prompt tokens from a position on that the last of a step's passes takes besides, so that the step takes at
        most `pace` times as long as without; from 1 to `room`. Without a figure, as many as there are tokens.
        """
        line = self._fitted()
        if line is None:
            return max(1, min(room, sum(work.tokens for work in passes)))
        spare = (pace - 1) * sum(self.seconds(work) for work in passes)
        if not passes[-1].tokens:  # a pass that is there for the prompt alone
            spare -= float(line[0])
        each = float(line[1] + line[2] * (position + room / 2))
        return max(1, min(room, int(spare / each))) if each > 0 else room

    def _fitted(self) -> npt.NDArray[np.float64] | None:
        if self._new and (self._line is None or self._new >= REFIT):
            self._line, self._new = self._fit(), 0
        return self._line

    def _fit(self) -> npt.NDArray[np.float64]:
        rows = [(1.0, tokens, positions, taken) for tokens, seen in self._seen.items() for positions, taken in seen]
        data = np.array(rows)
        features, taken = data[:, :3], data[:, 3]
        weights = np.ones(len(rows))
        for _ in range(3):  # reweighted: what does not fit the others counts less
            line = _not_negative(features / taken[:, None], weights)
            weights = 1 / (1 + ((features @ line / taken - 1) / DISTURBED) ** 2)
        return line


def _not_negative(features: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The line of numbers of at least 0 that comes closest to 1 for all rows; see `PRIOR`."""
    scale = np.maximum(features.mean(0), np.finfo(np.float64).tiny)
    scaled, used = features / scale, [0, 1, 2]
    prior = PRIOR * weights.sum() * np.diag((1.0, 1e-6, 1.0))
    line: npt.NDArray[np.float64] = np.zeros(3)
    while used:
        here = scaled[:, used]
        found = np.linalg.solve((here.T * weights) @ here + prior[np.ix_(used, used)], (here.T * weights).sum(1))
        if (found >= 0).all():
            line[used] = found
            break
        del used[int(found.argmin())]
    return np.asarray(line / scale)
