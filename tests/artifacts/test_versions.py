"""Files of every format version that ever was, as the program of their day wrote them: read, or refused with a remedy.

`versions/first` is a model directory of the first program that made one (model, profile, predictors, plan: all 1);
`versions/current` is one of today's, with an unfinished profiling run of `text.txt`. Both are of one checkpoint.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.stages import profile_checkpoint
from hybrid.store import evaluation_file, manifest
from placement import plan_file
from profiler import hardware, predictor_file, profile, thresholds
from profiler.artifacts import UserError

VERSIONS = Path(__file__).parent / "versions"


def read_run(path):
    """A run that cannot be taken up is told by what is found of it; see the last test for one that goes on."""
    run = profile_checkpoint.Checkpoint(path.parents[1], "run", {}, "0" * 64)
    if not run.holds_something:
        raise UserError(f"{path}: hybrid profile")


Reader = Callable[[Path], object]
# What reads it, the version that is written today, a file of each version from the first on, and versions refused.
KINDS: dict[str, tuple[Reader, int, tuple[str, ...], tuple[int, ...]]] = {
    "model": (lambda p: manifest.Manifest.read(p.parent), manifest.VERSION, ("first/model.json",), ()),
    "profile": (
        profile.read_profile,
        profile.PROFILE_VERSION,
        ("first/profiles/default.safetensors", "current/profiles/default.safetensors"),
        (),
    ),
    "predictors": (
        predictor_file.read_predictors,
        predictor_file.PREDICTOR_VERSION,
        ("first/predictors/default.safetensors", "predictors_2.safetensors", "current/predictors/default.safetensors"),
        (),
    ),
    "plan": (
        plan_file.read_plan,
        plan_file.PLAN_VERSION,
        ("first/plans/default.json", "plan_2.json", "current/plans/default.json"),
        (1,),
    ),
    "thresholds": (
        thresholds.read_thresholds,
        thresholds.THRESHOLDS_VERSION,
        ("thresholds_1.json", "thresholds_2.json"),
        (),
    ),
    "hardware": (
        hardware.read_hardware,
        hardware.HARDWARE_VERSION,
        ("hardware_1.json", "hardware_2.json", "hardware_3.json"),
        (1,),
    ),
    "evaluation": (
        evaluation_file.read_evaluation,
        evaluation_file.EVALUATION_VERSION,
        ("current/evaluations/default.json",),
        (),
    ),
    "profiling run": (
        read_run,
        profile_checkpoint.VERSION,
        ("current/profiles/.run.unfinished/run.json",),
        (),
    ),
}
EACH = [(kind, version) for kind, (_, known, _, _) in KINDS.items() for version in range(1, known + 1)]


def stated(path):
    """(kind, version) as a file states them itself."""
    if path.suffix == ".json":
        head = json.loads(path.read_bytes())
    else:
        data = path.read_bytes()
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return head["kind"], int(head["format_version"])


@pytest.mark.parametrize(("kind", "version"), EACH)
def test_a_file_of_each_version_is_read_or_refused_with_the_command_that_mends_it(kind, version):
    read, known, files, refused = KINDS[kind]
    assert len(files) == known, "a new version needs a file of the one before among these"
    path = VERSIONS / files[version - 1]
    assert stated(path) == (kind, version)
    if version in refused:
        with pytest.raises(UserError, match=rf"{re.escape(path.name)} has format version {version}.*hybrid [a-z]+ "):
            read(path)
    else:
        read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_version_is_refused_and_names_the_update(kind, tmp_path):
    read, known, files, _ = KINDS[kind]
    path = Path(shutil.copytree(VERSIONS, tmp_path / "copy")) / files[-1]
    data = path.read_bytes()
    newer = re.sub(rb'("format_version":\s*"?)\d', rb"\g<1>9", data, count=1)
    assert newer != data and known < 9
    path.write_bytes(newer)
    with pytest.raises(UserError, match="hybrid profile" if kind == "profiling run" else "update hybrid"):
        read(path)


@pytest.mark.parametrize("mode", ["exact", "predicted"])
def test_the_first_model_directory_runs_as_one_of_today(hybrid, mode):
    texts = []
    for name in ("first", "current"):
        status, text, errors = hybrid("run", str(VERSIONS / name), "The brown", "-n", "8", "--mode", mode)
        assert status == 0, errors
        texts.append(text)
    if mode == "exact":
        assert texts[0] == texts[1], "the same weights, whatever the order of their rows"


def test_every_byte_of_the_first_model_directory_is_as_it_was_packed(hybrid):
    status, text, errors = hybrid("inspect", str(VERSIONS / "first"), "--verify")
    assert status == 0, errors
    assert "verified" in text


def test_a_plan_no_longer_read_is_refused_by_the_command_that_was_given_it(hybrid):
    status, _, errors = hybrid("run", str(VERSIONS / "first"), "The", "--plan", "default", "--second-device", "cpu")
    assert status == 1
    assert "format version 1, no longer read; make it anew with: hybrid plan" in errors


def test_an_evaluation_from_before_documents_had_digests_is_refused(tmp_path):
    path = tmp_path / "default.json"
    body = json.loads((VERSIONS / "current/evaluations/default.json").read_bytes())
    for document in body["documents"]:
        del document["digest"]
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"damaged.*digest is missing.*make it anew with: hybrid eval"):
        evaluation_file.read_evaluation(path)


def test_an_unfinished_run_goes_on(hybrid, tmp_path, monkeypatch):
    model = shutil.copytree(VERSIONS / "current", tmp_path / "model")
    shutil.copy(VERSIONS / "text.txt", tmp_path / "short.txt")
    monkeypatch.chdir(tmp_path)
    status, text, errors = hybrid("profile", "model", "--text", "short.txt", "--tokens", "520", "--name", "run")
    assert status == 0, errors
    assert "going on from the last checkpoint of an unfinished run" in text + errors
    assert (model / "profiles/run.safetensors").is_file()
