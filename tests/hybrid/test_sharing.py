"""Processes share the model's pages: the script that the documents quote, held to what it shows."""

import sys

import measure_sharing
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells PSS")
def test_a_second_process_adds_almost_nothing(demo_copy):
    (alone,), both = measure_sharing.measure(demo_copy.resolve())
    model = sum(path.stat().st_size for path in [demo_copy / "dense.safetensors", *(demo_copy / "neurons").iterdir()])
    assert alone[0] > 0.95 * model, "dense decoding touches all of the model"
    assert sum(pss for _, pss in both) < 1.1 * alone[1]
    for rss, pss in both:
        assert rss > 0.95 * model
        assert pss < 0.6 * rss
