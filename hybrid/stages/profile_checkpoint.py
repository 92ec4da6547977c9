"""What an unfinished profiling run leaves, so that a killed one goes on: a hidden folder beside the profiles.

`run.json` names the other files and is replaced last; files that it does not name are removed. The folder goes when the
run has ended well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from safetensors.numpy import load_file, save

from profiler.artifacts import (
    UserError,
    atomic_writer,
    digest_json,
    explain_os_errors,
    read_json,
    write_atomic,
    write_json,
)
from profiler.predictor import PredictorSet
from profiler.predictor_file import read_predictors, write_predictors
from profiler.selection import Candidate

VERSION = 1
RUN = "run.json"
TOKENS = "tokens.bin"


@dataclass(frozen=True)
class Progress:
    """How far a run is, and its sizes, which a run that goes on keeps.

    sample_tokens: in the round of the sample; round_tokens: in each of the others. layers: of the sample's round that
    are done; rounds: of the others. counts, states: files; states are those after the last layer that is done.
    """

    sample_tokens: int
    round_tokens: int
    layers: int = 0
    rounds: int = 0
    counts: str | None = None
    states: str | None = None


def unfinished(profiles: Path, name: str) -> Path:
    """The folder of an unfinished run of that name."""
    return profiles / f".{name}.unfinished"


class Checkpoint:
    """The folder of a run named `name`. `identity` is all that the result depends on, as a JSON value.

    The caller holds the lock of the model directory.
    """

    def __init__(self, profiles: Path, name: str, identity: Mapping[str, Any], source_digest: str) -> None:
        self.folder = unfinished(profiles, name)
        self._identity, self._source = digest_json(dict(identity)), source_digest
        self.progress: Progress | None = None

    def find(self) -> str | None:
        """Take up what is there; says what was found: None where nothing was, or why it is not used."""
        if not self.folder.exists():
            return None
        stored = self._read()
        if stored is None or stored[1].counts is None:
            self.remove()
            return "the remains of a run that was killed before its first checkpoint were removed"
        if stored[0] != self._identity:
            self.remove()
            return "an unfinished run with other settings, another text or another row order was dropped"
        self.progress = stored[1]
        return "going on from the last checkpoint of an unfinished run"

    @property
    def holds_something(self) -> bool:
        """Whether a run can go on from what is on the disk, whatever was being written when it stopped."""
        stored = self._read()
        return stored is not None and stored[1].counts is not None

    def begin(self, progress: Progress) -> None:
        """Make the folder of a new run."""
        with explain_os_errors("write a checkpoint", self.folder.parent):
            self.folder.mkdir(exist_ok=True)
        self._write(progress)

    def save_layer(
        self,
        candidates: Sequence[Candidate],
        counts: Mapping[str, npt.NDArray[Any]],
        states: torch.Tensor,
    ) -> None:
        """A layer of the sample's round is done: its candidates, the chosen one first, all counts, and the states
        `[tokens, hidden]` after it.

        Raises:
            UserError: the disk is full.
        """
        assert self.progress is not None
        layer = self.progress.layers
        predictors, quality = tuple(c.predictor for c in candidates), tuple(c.quality for c in candidates)
        trials = tuple((c.trial,) for c in candidates)
        write_predictors(self._layer(layer), PredictorSet(self._source, predictors, quality, trials))
        name = f"states-{layer}.bin"
        with atomic_writer(self.folder / name) as file:
            file.write(states.numpy().data)
        self._save(replace(self.progress, layers=layer + 1, states=name), counts)

    def save_round(self, counts: Mapping[str, npt.NDArray[Any]]) -> None:
        """A round is done (the sample's, before the others: its states are no longer needed)."""
        assert self.progress is not None
        self._save(replace(self.progress, rounds=self.progress.rounds + 1, states=None), counts)

    def candidates(self) -> list[list[Candidate]]:
        """Those of the layers that are done, mapped.

        Raises:
            UserError: a file is damaged.
        """
        assert self.progress is not None
        found = [read_predictors(self._layer(layer)) for layer in range(self.progress.layers)]
        return [
            [Candidate(p, quality, trial[0]) for p, quality, trial in zip(s.layers, s.quality, s.trials, strict=True)]
            for s in found
        ]

    def counts(self) -> dict[str, npt.NDArray[Any]]:
        """What was counted so far.

        Raises:
            UserError: the file is damaged.
        """
        assert self.progress is not None and self.progress.counts is not None
        try:
            return dict(load_file(self.folder / self.progress.counts))
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"{self.folder} is damaged ({error}); remove it, and profile anew") from error

    def states(self, into: torch.Tensor) -> None:
        """Read the states after the last layer into fp32 `[tokens, hidden]`.

        Raises:
            UserError: the file has another size.
        """
        assert self.progress is not None and self.progress.states is not None
        path = self.folder / self.progress.states
        with explain_os_errors("read a checkpoint", path), path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != into.nbytes or file.readinto(into.numpy().data) != into.nbytes:
                raise UserError(f"{self.folder} is damaged; remove it, and profile anew")

    def remove(self) -> None:
        """Forget the run."""
        with explain_os_errors("remove a checkpoint", self.folder.parent):
            shutil.rmtree(self.folder)
        self.progress = None

    @property
    def tokens_path(self) -> Path:
        """Where the text's tokens are."""
        return self.folder / TOKENS

    def _read(self) -> tuple[object, Progress] | None:
        try:
            body = read_json(self.folder / RUN, "profiling run", VERSION, "hybrid profile DIR --text FILE")
            return body.get("identity"), Progress(**body["progress"])
        except (UserError, TypeError, KeyError):
            return None

    def _layer(self, layer: int) -> Path:
        return self.folder / f"predictor-{layer}.safetensors"

    def _save(self, progress: Progress, counts: Mapping[str, npt.NDArray[Any]]) -> None:
        name = f"counts-{progress.layers}-{progress.rounds}.safetensors"
        write_atomic(self.folder / name, save({key: np.ascontiguousarray(value) for key, value in counts.items()}))
        self._write(replace(progress, counts=name))

    def _write(self, progress: Progress) -> None:
        body = {"identity": self._identity, "progress": asdict(progress)}
        write_json(self.folder / RUN, "profiling run", VERSION, body)
        self.progress = progress
        named = {RUN, TOKENS, progress.counts, progress.states}
        for path in self.folder.iterdir():
            if path.name not in named and not path.name.startswith("predictor-"):
                path.unlink()
