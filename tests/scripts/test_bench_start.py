"""The benchmark of starts: what it says of the page cache is so, and its figures are those of the runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident, and PSS")


def test_pages_in_the_cache_are_counted(tmp_path: Path) -> None:
    from bench_start import cached_pages, warm

    path = tmp_path / "file"
    path.write_bytes(bytes(10 * 4096 + 1))
    warm([path])
    assert cached_pages(path) == (11, 11)
    with path.open("r+b") as file:
        file.truncate(100 * 4096)  # a hole that nobody has read
    cached, pages = cached_pages(path)
    assert pages == 100
    assert cached < 100


def test_a_model_is_measured(demo_copy: Path) -> None:
    from bench_start import available_modes, measure, weight_files

    assert available_modes(demo_copy, ("predicted", "dense")) == ["predicted", "dense"]
    assert {path.parent.name for path in weight_files(demo_copy)} == {demo_copy.name, "neurons", "predictors"}
    result = measure(demo_copy.resolve(), ["predicted"], rounds=1, cold_rounds=0)
    figures = result["modes"]["predicted"]
    for name in ("mmap", "no_mmap"):
        assert 0 < figures[name]["open_seconds"] < figures[name]["first_token_seconds"]
        assert figures[name]["pss"] <= figures[name]["peak_rss"]
    for name, ratio in figures["ratio"].items():
        assert ratio == figures["no_mmap"][name] / figures["mmap"][name]
    assert figures["second_process"]["added_of_files"] < 0.1 * result["bytes"]
