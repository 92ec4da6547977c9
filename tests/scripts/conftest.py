"""What tests of scripts share."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


@pytest.fixture(scope="session")
def scripts() -> Path:
    """The folder of the scripts."""
    return SCRIPTS


@pytest.fixture(scope="session")
def tiny_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The preset `tiny` as a model directory in each format, hottest rows first. Read them only."""
    from synthetic.directory import write_directory
    from synthetic.shape import PRESETS, Shape
    from synthetic.weights import PlantedWeights

    from profiler.formats import WEIGHT_FORMATS

    folder = tmp_path_factory.mktemp("tiny")
    weights = PlantedWeights(Shape(**PRESETS["tiny"]))
    for weight_format in WEIGHT_FORMATS:
        write_directory(folder / weight_format, weights, weight_format, lambda stage, done, total: None)
    return {weight_format: folder / weight_format for weight_format in WEIGHT_FORMATS}
