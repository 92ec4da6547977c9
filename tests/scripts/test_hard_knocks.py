"""Hard knocks: a sample of the campaign, always the same one, and what the campaign itself is made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from knocks.campaign import Result, read_results
from knocks.figures import markdown, summary
from knocks.mutations import damaged_bytes, damaged_json, damaged_json_bytes, damaged_safetensors, json_bytes
from knocks.points import spread
from knocks.pool import BAD, judge
from knocks.targets import TARGETS, numbered
from knocks.tracer import can_trace
from safetensors.numpy import save


def knocks(scripts: Path, tmp_path: Path, *arguments: object) -> list[Result]:
    """Results of a run in a process of its own, which may fork; the last of its output where one ended badly."""
    command = [sys.executable, "-W", "ignore", scripts / "hard_knocks.py", *arguments]
    folders = ["--scratch", tmp_path / "scratch", "--folder", tmp_path / "results"]
    (tmp_path / "scratch").mkdir()
    done = subprocess.run([*map(str, command), *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return [result for path in (tmp_path / "results").glob("*.jsonl") for result in read_results(path)]


def test_a_sample_of_damaged_files_options_and_requests(scripts: Path, tmp_path: Path) -> None:
    found = knocks(scripts, tmp_path, "fuzz", "--cases", 34, "--step", 5, "--seed", 7, "--workers", 1)
    assert len(found) == 34
    assert len({result.target for result in found}) > 20
    assert not {result.kind for result in found} & set(BAD)
    assert not list((tmp_path / "scratch").glob("case-*"))


@pytest.mark.slow
def test_a_larger_sample(scripts: Path, tmp_path: Path) -> None:
    assert len(knocks(scripts, tmp_path, "fuzz", "--cases", 500, "--seed", 8)) == 500


@pytest.mark.slow
@pytest.mark.skipif(not can_trace(), reason="system calls are counted on x86-64 Linux")
@pytest.mark.parametrize("kind", ["kills", "vanishing", "shrinking", "signals", "servers", "together", "unwritable"])
def test_some_points_of_each_kind(scripts: Path, tmp_path: Path, kind: str) -> None:
    assert len(knocks(scripts, tmp_path, "points", "--only", kind, "--most", 8)) == 8


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk is mounted")
def test_some_full_disks(scripts: Path, tmp_path: Path) -> None:
    assert len(knocks(scripts, tmp_path, "points", "--only", "full-disks", "--most", 8)) == 8


@given(st.integers(0, 10**6), st.binary(max_size=300))
def test_damage_follows_from_the_seed(seed: int, data: bytes) -> None:
    assert damaged_bytes(data, Random(seed)) == damaged_bytes(data, Random(seed))


@given(st.integers(0, 10**6))
def test_damaged_json_is_a_file_and_leaves_the_value_alone(seed: int) -> None:
    value = {"a": [1, 2, {"b": "text"}], "c": None, "d": 0.5, "kind": True}
    kept = json.dumps(value)
    assert isinstance(json_bytes(damaged_json(value, Random(seed))), bytes)
    assert json.dumps(value) == kept
    assert isinstance(damaged_json_bytes(kept.encode(), Random(seed)), bytes)


@given(st.integers(0, 10**6))
def test_damaged_safetensors_are_mostly_other_bytes(seed: int) -> None:
    import numpy as np

    data = save({"x": np.arange(12, dtype=np.float32)}, {"kind": "thing", "thing": '{"a": [1, 2]}'})
    assert isinstance(damaged_safetensors(data, Random(seed)), bytes)


def test_every_target_has_its_share_of_cases() -> None:
    total = sum(target.share for target in TARGETS)
    assert [numbered(case).name for case in range(total)].count("plan") == 8
    assert numbered(total) == numbered(0)
    assert len({target.name for target in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (0, "", "done"),
        (1, "warning: x\nhybrid: no such file\n", "refused"),
        (1, "", "silent"),
        (2, "Usage: ...", "usage"),
        (130, "", "exit"),
        (-11, "", "crash"),
        (1, "Traceback (most recent call last):\n", "traceback"),
        (0, "thread 'main' panicked at src/lib.rs", "traceback"),
    ],
)
def test_what_an_end_counts_as(code: int, said: str, kind: str) -> None:
    assert judge(code, said) == kind
    assert judge(130, "", (0, 130)) == "done"


def test_points_are_spread_from_the_first_to_the_last() -> None:
    assert spread(3, 101) == [1, 51, 101]
    assert spread(5, 0) == []


@pytest.mark.skipif(not can_trace(), reason="system calls are counted on x86-64 Linux")
def test_a_process_is_killed_before_its_nth_write(scripts: Path, tmp_path: Path) -> None:
    code = f"""
import os, sys, time
sys.path.insert(0, {str(scripts)!r})
from pathlib import Path
from knocks.tracer import traced
def work():
    for name in "abcd":
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT))
print([(t.status, t.writes) for t in (traced(work, Path("."), 60), traced(work, Path("."), 60, 3))])
print(traced(lambda: time.sleep(100), Path("."), 0.2).status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "[(0, 4), (9, 3)]\nNone\n", done.stderr
    assert (tmp_path / "d").exists()


def test_figures_say_how_many_ended_how(tmp_path: Path) -> None:
    kinds = [
        ("plan", "done", 1),
        ("plan", "refused", 1),
        ("requests over HTTP", "done", 25),
        ("kill -9: pack", "damage", 1),
    ]
    results = [Result(1, i, target, kind, 0, 0.1, count) for i, (target, kind, count) in enumerate(kinds)]
    figures = summary(results)
    assert figures["groups"]["fuzz"]["requests over HTTP"] == {"done": 25}
    assert figures["bad"] == ["seed 1 case 3: kill -9: pack, damage"]
    table = markdown(figures)
    assert "**damaged inputs**: 27 cases, 0 ended badly." in table
    assert "| pack | 1 | 0 | 0 | 0 | 1 |" in table
