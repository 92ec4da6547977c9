"""What a pass costs, learned from those that were computed, and how many prompt tokens that lets a step take. No torch.

A pass of the native operators reads weights, which all tokens share, and multiplies them for each token; it reads the
keys and values of each text once, and attends to them with each token. So four numbers are fitted to the last passes of
each size. What is fitted are relative errors: a pass that was disturbed counts for little.
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
    """What a pass has to do.

    tokens: of it. keys: of the texts that they belong to, each counted once. attended: sum over tokens of the keys that
    each attends to.
    """

    tokens: int
    keys: int
    attended: int

    def with_part(self, first: int, count: int) -> Work:
        """Some tokens of another text besides, from a position on."""
        attended = count * (2 * first + count + 1) // 2
        return Work(self.tokens + count, self.keys + (first + count if count else 0), self.attended + attended)


NOTHING = Work(0, 0, 0)


class PassCosts:
    """Seconds of passes."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[tuple[Work, float]]] = {}  # work and seconds, by tokens
        self._line: tuple[float, ...] | None = None  # seconds of a pass, a token, a key that is read, one attended to
        self._new = 0

    def observe(self, work: Work, seconds: float) -> None:
        """A pass took so long."""
        self._seen.setdefault(work.tokens, deque(maxlen=RECENT)).append((work, max(seconds, 1e-9)))
        self._new += 1

    def seconds(self, work: Work) -> float:
        """What a pass is expected to take; 0 as long as nothing was observed, and of no tokens."""
        line = self._fitted()
        if line is None or not work.tokens:
            return 0.0
        return line[0] + line[1] * work.tokens + line[2] * work.keys + line[3] * work.attended

    def affordable(self, usual: Sequence[Work], passes: Sequence[Work], position: int, room: int, pace: float) -> int:
        """Prompt tokens from a position on, up to `room`, that the last of a step's passes takes besides, so that the
        step takes at most `pace` times as long as one of the `usual` passes. Without a figure, so that it has at most
        twice as many tokens.
        """
        if self._fitted() is None:
            return max(0, min(room, sum(2 * work.tokens for work in usual) - sum(work.tokens for work in passes)))
        *others, last = passes
        most = pace * sum(map(self.seconds, usual)) - sum(map(self.seconds, others))
        return next((n for n in range(room, 0, -1) if self.seconds(last.with_part(position, n)) <= most), 0)

    def _fitted(self) -> tuple[float, ...] | None:
        if self._new and (self._line is None or self._new >= REFIT):
            self._line, self._new = self._fit(), 0
        return self._line

    def _fit(self) -> tuple[float, ...]:
        seen = [pair for some in self._seen.values() for pair in some]
        features = np.array([(1.0, work.tokens, work.keys, work.attended) for work, _ in seen])
        taken, weights = np.array([seconds for _, seconds in seen]), np.ones(len(seen))
        for _ in range(3):  # reweighted: what does not fit the others counts less
            line = _not_negative(features / taken[:, None], weights)
            weights = 1 / (1 + ((features @ line / taken - 1) / DISTURBED) ** 2)
        return tuple(line.tolist())


def _not_negative(features: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The line of numbers of at least 0 that comes closest to 1 for all rows; see `PRIOR`."""
    scale = np.maximum(features.mean(0), np.finfo(np.float64).tiny)
    scaled, used = features / scale, [0, 1, 2, 3]
    prior = PRIOR * weights.sum() * np.diag((1.0, 1e-6, 1.0, 1.0))
    line: npt.NDArray[np.float64] = np.zeros(4)
    while used:
        here = scaled[:, used]
        found = np.linalg.solve((here.T * weights) @ here + prior[np.ix_(used, used)], (here.T * weights).sum(1))
        if (found >= 0).all():
            line[used] = found
            break
        del used[int(found.argmin())]
    return np.asarray(line / scale)
