"""What a user names is found without loading or making anything."""

import shutil

import pytest

from hybrid.stages.finding import find_model, find_outlines, find_plan, offered_modes
from hybrid.store.files import ModelFiles
from profiler.artifacts import UserError


def test_the_demo_is_found_once_it_is_made_and_profiled(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path))
    assert find_model("demo") is None
    copy = shutil.copytree(demo, tmp_path / demo.name)
    assert find_model("demo") == copy
    (copy / "predictors" / "default.safetensors").unlink()
    assert find_model("demo") is None
    assert find_model("elsewhere/demo").parts == ("elsewhere", "demo")


def test_predictors_are_found_by_the_name_of_their_profile(demo_copy):
    files = ModelFiles.open_files(demo_copy)
    found = find_outlines(files, "default")
    assert found is not None
    assert len(found.layers) == files.spec.n_layers
    assert offered_modes(files) == ["dense", "exact", "predicted"]
    assert find_outlines(files, "another") is None
    assert offered_modes(files, "another") == ["dense", "exact"]


def test_plans_that_are_not_there_name_the_command(demo_copy):
    files = ModelFiles.open_files(demo_copy)
    assert find_plan(files, None) is None
    for name in ("none", "folder/none"):
        with pytest.raises(UserError, match="hybrid plan"):
            find_plan(files, name)
