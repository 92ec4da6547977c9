"""Thresholds on the disk: what is written is read, and nothing else is."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.quality import Interval
from profiler.thresholds import (
    MOST_DOCUMENTS,
    SIZE_LIMIT,
    LayerThreshold,
    Loss,
    Thresholds,
    loss_label,
    read_thresholds,
    write_thresholds,
)

LOSS = Loss("held.txt", 5000, 10.0, 10.09, 1.009, Interval(1.007, 1.0111, 0.95, 40, 10_000))
LAYERS = (LayerThreshold(0.0, 1.0, 1.0), LayerThreshold(0.25, 0.5, 0.875))
SEEN = ("00000000000000aa", "ffffffffffffffff")
GOOD = Thresholds("a" * 64, "b" * 64, 800, 200, LAYERS, 0.5, loss=LOSS, documents=SEEN)


@pytest.mark.parametrize("thresholds", [GOOD, replace(GOOD, loss=None), replace(GOOD, sparsity=None, budget=0.001),
                                        replace(GOOD, loss=replace(LOSS, interval=None))])  # fmt: skip
def test_round_trip(tmp_path, thresholds):
    path = tmp_path / "default.json"
    write_thresholds(path, thresholds)
    assert read_thresholds(path) == thresholds
    assert thresholds.cutoffs == (0.0, 0.25)
    assert thresholds.active == 0.75


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": []},
        {"layers": None},
        {"layers": [{"cutoff": -1, "active": 0.5, "mass_kept": 0.5}]},
        {"layers": [{"cutoff": 1e39, "active": 0.5, "mass_kept": 0.5}]},
        {"layers": [{"cutoff": True, "active": 0.5, "mass_kept": 0.5}]},
        {"layers": [{"cutoff": 1, "active": 1.5, "mass_kept": 0.5}]},
        {"layers": [{"cutoff": 1, "active": 0.5}]},
        {"sparsity": None},
        {"budget": 0.1},
        {"tokens": 0},
        {"source_digest": 5},
        {"loss": {}},
        {"loss": 7},
        {"unknown": 1},
        {"documents": None},
        {"documents": [1]},
        {"documents": ["aa"]},
        {"documents": ["00000000000000AA"]},
        {"documents": "00000000000000aa"},
    ],
)
def test_damaged_thresholds_are_refused(tmp_path, wrong):
    path = tmp_path / "default.json"
    write_thresholds(path, GOOD)
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(UserError, match=r"damaged.*hybrid calibrate"):
        read_thresholds(path)


@pytest.mark.parametrize(("version", "expected"), [(1, replace(GOOD, documents=())), (2, GOOD)])
def test_files_of_every_version_are_read(version, expected):
    assert read_thresholds(Path(__file__).parents[1] / f"artifacts/versions/thresholds_{version}.json") == expected


def test_documents_are_as_many_as_a_file_holds(tmp_path):
    path = tmp_path / "default.json"
    many = replace(GOOD, documents=SEEN[:1] * MOST_DOCUMENTS)
    write_thresholds(path, many)
    assert path.stat().st_size < SIZE_LIMIT
    with pytest.raises(UserError, match="fewer"):
        replace(many, documents=(*many.documents, SEEN[1]))


@pytest.mark.parametrize(("version", "match"), [(3, "update hybrid"), (0, "calibrate"), (None, "calibrate")])
def test_other_versions_are_refused(tmp_path, version, match):
    path = tmp_path / "default.json"
    write_thresholds(path, GOOD)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    with pytest.raises(UserError, match=match):
        read_thresholds(path)
    with pytest.raises(UserError, match="no thresholds"):
        read_thresholds(tmp_path / "other.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["cutoff", "ratio", "x"]), inner),
)


@settings(deadline=None, max_examples=100)
@given(key=st.sampled_from([*vars(GOOD), "kind", "format_version"]), value=VALUES)
def test_any_value_is_read_or_a_user_error(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("thresholds") / "default.json"
    write_thresholds(path, GOOD)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with contextlib.suppress(UserError):
        read_thresholds(path)


def test_the_label_says_what_is_lost():
    assert loss_label(LOSS) == (
        "threshold mode, lossy: +0.90% perplexity (95% interval +0.70% to +1.11%) measured on 5,000 tokens of held.txt"
    )
    assert "loss not measured; hybrid eval model --mode threshold" in loss_label(None, "model")


def test_numbers_too_large_to_count_with_are_refused():
    assert replace(GOOD, sparsity=None, budget=1e300).budget == 1e300
    with pytest.raises(UserError, match="larger than anything"):
        replace(GOOD, sparsity=None, budget=10**400)
