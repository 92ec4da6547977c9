"""The benchmark of prompts: both ways compute the same, and the crossover is where its rates say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("native", "by_torch", "expected"),
    [([5, 5, 5], [4, 4, 4], None), ([5, 5, 5], [4, 6, 6], 64), ([5, 5, 5], [6, 4, 6], 256), ([1, 1, 1], [2, 2, 2], 16)],
)
def test_the_crossover_is_where_torch_stays_faster(
    native: list[int], by_torch: list[int], expected: int | None
) -> None:
    from bench_prompts import crossover

    lengths = (16, 64, 256)
    rates = {
        "native": dict(zip(lengths, map(float, native), strict=True)),
        "torch": dict(zip(lengths, map(float, by_torch), strict=True)),
    }
    assert crossover(rates) == expected


def test_a_model_is_measured_both_ways(
    tiny_directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench_prompts import main

    path = tmp_path / "figures.json"
    models = [str(tiny_directories[name]) for name in ("f16", "q4_0")]
    main(
        [
            *models,
            "--modes",
            "predicted,dense",
            "--lengths",
            "5,40",
            "--rounds",
            "1",
            "--threads",
            "1",
            "--json",
            str(path),
        ]
    )
    results = json.loads(path.read_text())
    assert [result["mode"] for result in results] == ["predicted", "dense"] * 2
    for result in results:
        assert all(rate > 0 for way in ("native", "torch") for rate in result["tokens_per_second"][way].values())
    assert "q4_0" in capsys.readouterr().out


def test_the_two_ways_take_the_paths_they_are_named_for(tiny_directories: dict[str, Path]) -> None:
    from hybrid.stages.opening import open_engine

    path = tiny_directories["f16"]
    with (
        open_engine(path, mode="dense", context=64, threads=1) as native,
        open_engine(path, mode="dense", context=64, threads=1, prefill_tokens=62) as by_torch,
    ):
        assert native.machine.prefill_tokens == 16
        assert by_torch.machine.prefill_tokens == 62
