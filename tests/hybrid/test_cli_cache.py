"""`hybrid cache`: what it lists, and that clearing hurts nobody who uses what is cleared."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from hybrid import LLM, SamplingParams
from hybrid.stages.cache_contents import CLEARED, cache_contents, clear_cache
from hybrid.stages.demo import demo_directory
from profiler.artifacts import directory_lock

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture
def cache(demo, tmp_path, monkeypatch):
    """A cache of its own: the demo, two plans, the figures of a machine, and files of somebody else."""
    folder = tmp_path / "cache"
    shutil.copytree(demo, folder / demo.name)
    for path, size in (
        ("plans/0123456789abcdef/a.json", 100),
        ("plans/llama-1b-f16-0123/model.json", 100),  # of a benchmark
        ("hardware/some-processor-2-threads-0badcafe.json", 5000),
        ("hardware/some-processor-2-threads-0badcafe-cpu.json", 5000),
        ("hardware/notes.txt", 9000),
        ("demo-of-mine/model.json", 10),
        (f"{CLEARED}1-demo-0123456789ab/x", 10),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x" * size)
    monkeypatch.setenv("HYBRID_CACHE", str(folder))
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_list_knows_what_is_hybrids(hybrid, cache, demo):
    code, out, _ = hybrid("cache", "list")
    assert code == 0
    shown = {line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")} - {"path"}
    assert shown == {
        demo.name,
        "plans/0123456789abcdef",
        "hardware/some-processor-2-threads-0badcafe.json",
        "hardware/some-processor-2-threads-0badcafe-cpu.json",
        f"{CLEARED}1-demo-0123456789ab",
    }
    assert "of other files, which are left alone" in out
    body = json.loads(hybrid("cache", "list", "--json")[1])
    (model,) = (entry for entry in body["entries"] if entry["kind"] == "demo")
    weights = sum(path.stat().st_size for path in demo.rglob("*") if path.is_file())
    assert model["bytes"] == pytest.approx(weights, rel=0.1) and model["modified"] <= time.time()
    assert body["bytes"] == sum(entry["bytes"] for entry in body["entries"]) and body["other_bytes"] > 0


def test_clearing_takes_what_comes_back_by_itself_or_what_is_named(hybrid, refused, cache, demo):
    others = {"plans/llama-1b-f16-0123/model.json", "hardware/notes.txt", "demo-of-mine/model.json"}
    figures = {path for path in files_of(cache) if "0badcafe" in path}
    assert "hybrid cache list" in refused("cache", "clear", "models")
    code, out, _ = hybrid("cache", "clear", "plans")
    assert code == 0 and "removed plans/0123456789abcdef (plans," in out
    assert (cache / demo.name).exists() and not (cache / "plans" / "0123456789abcdef").exists()
    assert hybrid("cache", "clear")[0] == 0
    assert files_of(cache) == others | figures
    assert hybrid("cache", "clear", "--all")[0] == 0
    assert files_of(cache) == others
    assert demo_directory() == cache / demo.name, "made anew"
    assert json.loads(hybrid("cache", "clear", "--json")[1])["removed"][0]["path"] == demo.name


def test_a_model_in_use_goes_on(cache, demo):
    with LLM(demo_directory(), mode="predicted", max_sequences=1) as llm:
        expected = llm.generate("def main(", PARAMS)[0].token_ids
        pieces = llm.stream("def main(", PARAMS)
        next(pieces)
        assert [entry.path for entry in clear_cache(["demo"]).removed] == [demo.name]
        assert not (cache / demo.name).exists()
        list(pieces)
        assert llm.last_completion.token_ids == expected
        assert llm.generate("def main(", PARAMS)[0].token_ids == expected


def test_what_is_being_written_stays(hybrid, cache, demo):
    with directory_lock(cache / demo.name, "hold it"):
        code, out, err = hybrid("cache", "clear", "demo")
        assert code == 1 and "0 B freed" in out
        assert f"{demo.name} is still there: cannot clear the cache: another process is writing" in err
    assert (cache / demo.name / "model.json").exists()


def test_links_are_removed_and_not_followed(cache, demo, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(cache / demo.name, outside)
    (cache / demo.name).symlink_to(outside)
    before = files_of(outside)
    clear_cache(everything=True)
    assert not os.path.lexists(cache / demo.name) and files_of(outside) == before


def test_a_cache_that_is_not_there_is_empty(hybrid, tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "none"))
    assert cache_contents().entries == () and clear_cache().removed == ()
    code, out, _ = hybrid("cache", "list")
    assert (code, out) == (0, f"{tmp_path / 'none'}: 0 B can be cleared\n")
    assert not Path(tmp_path / "none").exists()
