"""The demo's texts: that they are what its record says, share no document, and that the script writes them so."""

import hashlib
import json

import demo_corpus
import pytest

from hybrid.stages.shipped import CALIBRATION_TEXT, CHECKPOINT, HELDOUT_TEXT, PROFILE_TEXT

TEXTS = {"heldout": HELDOUT_TEXT, "profile": PROFILE_TEXT, "calibrate": CALIBRATION_TEXT}


@pytest.fixture(scope="module")
def training():
    return json.loads((CHECKPOINT / "training.json").read_text())


def lines(part):
    return [json.loads(line) for line in TEXTS[part].read_bytes().splitlines()]


def test_the_shipped_texts_are_those_of_the_record(training):
    for part, path in TEXTS.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == training["texts"][path.name]
        assert [line["path"] for line in lines(part)] == list(training["files"][part])


def test_no_file_is_in_two_parts(training):
    paths = [path for files in training["files"].values() for path in files]
    digests = [digest for part in demo_corpus.UNSEEN for digest in training["files"][part].values()]
    assert len(set(paths)) == len(paths)
    assert len(set(digests)) == len(digests)
    assert not set(digests) & set(training["files"]["train"].values())


def source(path, size):
    return demo_corpus.SourceFile(path, f"# {path}\n" + "x" * size, hashlib.sha256(path.encode()).hexdigest())


def test_a_split_leaves_nothing_out_and_calibrates_on_a_fifth(tmp_path):
    files = [source(f"folder/module_{i}.py", 2_000 + 97 * i % 9_000) for i in range(400)]
    parts = demo_corpus.split_library(files)
    assert sorted(file.path for part in parts.values() for file in part) == sorted(file.path for file in files)
    sizes = {name: sum(len(file.text) for file in part) for name, part in parts.items()}
    assert 0.95 * demo_corpus.CALIBRATE_BYTES < sizes["calibrate"] <= demo_corpus.CALIBRATE_BYTES
    assert sizes["profile"] + sizes["calibrate"] <= demo_corpus.PROFILE_BYTES
    digests = demo_corpus.write_texts(parts, tmp_path)
    assert sorted(digests) == sorted(path.name for path in TEXTS.values())
    for part in demo_corpus.UNSEEN:
        written = [json.loads(line) for line in (tmp_path / f"{part}.jsonl").read_text().splitlines()]
        assert written == [{"path": file.path, "text": file.text} for file in parts[part]]
