"""What every container of a checkpoint is read into, before its tensors get this project's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybrid.checkpoint.family import Family
from hybrid.checkpoint.tensors import SourceTensor
from hybrid.spec import ModelSpec


@dataclass(frozen=True)
class Source:
    """A checkpoint as it is stored.

    family: how its tensors are called. tensors: by those names. made: files that stand for those of a folder, by the
    names that they have in a model directory; None where there is a folder. notes: what the user should know.
    """

    family: Family
    spec: ModelSpec
    tensors: dict[str, SourceTensor]
    made: Mapping[str, bytes] | None = None
    notes: tuple[str, ...] = ()
