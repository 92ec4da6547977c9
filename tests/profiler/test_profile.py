import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from profiler.artifacts import UserError
from profiler.profile import COUNT_NAMES, Profile, read_profile, write_profile


def make(layers: int = 2, neurons: int = 5, tokens: int = 100, seed: int = 0, **changes) -> Profile:
    generator = np.random.default_rng(seed)
    counts = {name: generator.integers(0, tokens + 1, (layers, neurons)) for name in COUNT_NAMES}
    return Profile("source", "corpus", tokens, **{**counts, **changes})


def same(one: Profile, other: Profile) -> bool:
    plain = ("source_digest", "corpus_digest", "tokens", "thresholds", "has_predictors")
    return all(getattr(one, n) == getattr(other, n) for n in plain) and all(
        np.array_equal(getattr(one, n), getattr(other, n)) for n in (*COUNT_NAMES, "documents")
    )


@settings(deadline=None, max_examples=15)
@given(
    layers=st.integers(1, 4),
    neurons=st.integers(1, 20),
    tokens=st.integers(1, 2**40),
    seed=st.integers(0, 99),
    thresholds=st.lists(st.floats(0, 1e6), max_size=4),
)
def test_a_profile_comes_back_as_it_was_written(tmp_path_factory, layers, neurons, tokens, seed, thresholds):
    path = tmp_path_factory.mktemp("profile") / "default.safetensors"
    documents = np.arange(seed, dtype=np.uint64) + np.uint64(2**64 - 100)
    profile = make(
        layers, neurons, tokens, seed, thresholds=tuple(thresholds), has_predictors=bool(seed % 2), documents=documents
    )
    write_profile(path, profile)
    assert same(read_profile(path), profile)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_hottest_first_is_a_permutation_by_falling_count_with_ties_by_id():
    profile = make(1, 5, active=np.array([[3, 7, 3, 0, 7]]))
    order = profile.hottest_first(0)
    assert order.tolist() == [1, 4, 0, 2, 3]
    assert order.dtype == np.int32


def test_frequency_is_the_share_of_tokens():
    profile = make(1, 2, tokens=8, active=np.array([[2, 8]]), union4=np.array([[4, 8]]))
    assert profile.frequency().tolist() == [[0.25, 1.0]]
    assert profile.frequency("union4").tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"active": np.full((2, 5), 101)},
        {"union4": np.full((2, 5), -1)},
        {"documents": np.zeros(3, dtype=np.int64)},
        {"named": np.zeros((2, 4), dtype=np.int64)},
        {"union16": np.zeros((2, 5), dtype=np.int32)},
        {"active": np.zeros(5, dtype=np.int64)},
    ],
)
def test_impossible_counts_are_refused(changes):
    with pytest.raises(UserError):
        make(**changes)


def test_a_profile_of_no_tokens_is_refused():
    with pytest.raises(UserError):
        make(tokens=0)


def write_raw(path, metadata, **changes):
    profile = make()
    arrays = {name: getattr(profile, name) for name in COUNT_NAMES} | changes
    save_file({k: v for k, v in arrays.items() if v is not None}, path, metadata)


BODY = json.dumps({"source_digest": "s", "corpus_digest": "c", "tokens": 100})
GOOD = {"kind": "profile", "format_version": "1", "profile": BODY}


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        (GOOD | {"format_version": "2"}, {}, "newer"),
        (GOOD | {"format_version": "0"}, {}, "no longer read"),
        (GOOD | {"format_version": "x"}, {}, "no format version"),
        (GOOD | {"kind": "predictors"}, {}, "not a profile"),
        ({"kind": "profile", "format_version": "1"}, {}, "damaged"),
        (GOOD | {"profile": "{"}, {}, "damaged"),
        (GOOD | {"profile": "[1]"}, {}, "damaged"),
        (GOOD | {"profile": json.dumps({"tokens": "many"})}, {}, "damaged"),
        (GOOD, {"union4": None}, "damaged"),
        (GOOD, {"active": np.zeros((2, 5), dtype=np.float32)}, "int64"),
        (GOOD, {"active": np.full((2, 5), 1000)}, "outside"),
    ],
)
def test_damaged_files_are_refused_with_the_command_that_mends_them(tmp_path, metadata, changes, message):
    path = tmp_path / "default.safetensors"
    write_raw(path, metadata, **changes)
    with pytest.raises(UserError, match=message):
        read_profile(path)


def test_a_good_raw_file_is_read(tmp_path):
    path = tmp_path / "default.safetensors"
    write_raw(path, GOOD)
    assert read_profile(path).tokens == 100


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x10\x00\x00\x00\x00\x00\x00\x00{not json}xxxxxx"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "default.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="make it anew with: mend it"):
        read_profile(path, "mend it")


def test_a_missing_profile_names_the_command(tmp_path):
    with pytest.raises(UserError, match="hybrid profile"):
        read_profile(tmp_path / "none.safetensors")
