"""What would make a model faster that is run as it is: the command to name where nobody has chosen a mode. No torch."""

from __future__ import annotations

from hybrid.stages.thresholds import find_thresholds
from hybrid.store.files import ModelFiles
from placement.plan import Mode


def faster_line(files: ModelFiles, asked: str | None, mode: Mode, thresholds: str = "default") -> str:
    """What follows the line that says how a model was opened; empty where there is nothing to name.

    asked: the mode that the user chose, None where it was left to the model; mode: the one that it is opened in.
    """
    if asked is not None or mode == "predicted":
        return ""
    if mode == "exact":
        return (
            "; every gate is computed, as nothing predicts which neurons fire: what does, and is faster, comes of "
            f"hybrid profile {files.path} --text FILE"
        )
    silent = f"; {files.spec.activation} is never exactly zero, so every neuron is computed: faster, and lossy, is "
    if find_thresholds(files, thresholds) is not None:
        return f"{silent}--mode threshold"
    return f"{silent}--mode threshold after hybrid calibrate {files.path} --text FILE"
