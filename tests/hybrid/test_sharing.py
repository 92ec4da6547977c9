"""Processes share the model's pages: the script that the documents quote, held to what it shows."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure_sharing.py"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells PSS")
def test_a_second_process_adds_almost_nothing(demo_copy, monkeypatch):
    spec = importlib.util.spec_from_file_location("measure_sharing", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    (alone,), both = script.measure(demo_copy.resolve())
    model = sum(path.stat().st_size for path in [demo_copy / "dense.safetensors", *(demo_copy / "neurons").iterdir()])
    assert alone[0] > 0.95 * model, "dense decoding touches all of the model"
    assert sum(pss for _, pss in both) < 1.1 * alone[1]
    for rss, pss in both:
        assert rss > 0.95 * model
        assert pss < 0.6 * rss
