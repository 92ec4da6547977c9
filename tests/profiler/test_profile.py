import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from profiler.artifacts import UserError
from profiler.profile import COUNT_NAMES, Profile, compact, read_profile, write_profile

FIXTURE = Path(__file__).parents[1] / "artifacts/versions/profile_1.safetensors"


def make(layers: int = 2, neurons: int = 5, tokens: int = 100, seed: int = 0, **changes) -> Profile:
    """A profile of version 1: without parts."""
    generator = np.random.default_rng(seed)
    counts = {name: generator.integers(0, tokens + 1, (layers, neurons)) for name in COUNT_NAMES}
    return Profile("source", "corpus", tokens, **{**counts, **changes})


def make_parts(layers: int = 2, neurons: int = 5, tokens: int = 100, seed: int = 0, domains=("a", "b"), **changes):
    """A profile counted in halves of some domains."""
    generator = np.random.default_rng(seed)
    edges = np.sort(generator.integers(0, tokens + 1, 2 * len(domains) - 1))
    part_tokens = np.diff(edges, prepend=0, append=tokens).reshape(len(domains), 2)
    parts = generator.integers(0, part_tokens[:, :, None, None] + 1, (len(domains), 2, layers, neurons))
    body = {
        "active": parts.sum((0, 1)),
        "parts": compact(parts),
        "part_tokens": tuple((int(x), int(y)) for x, y in part_tokens),
        "domains": tuple(domains),
        "predictors_digest": "digest",
        "has_predictors": True,
    }
    return make(layers, neurons, tokens, seed, **{**body, **changes})


PLAIN = (
    "source_digest",
    "corpus_digest",
    "tokens",
    "thresholds",
    "has_predictors",
    "predictors_digest",
    "domains",
    "part_tokens",
)


def same(one: Profile, other: Profile) -> bool:
    return all(getattr(one, n) == getattr(other, n) for n in PLAIN) and all(
        np.array_equal(getattr(one, n), getattr(other, n)) for n in (*COUNT_NAMES, "parts")
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
    kind = make_parts if seed % 3 else make
    profile = kind(layers, neurons, tokens, seed, thresholds=tuple(thresholds), has_predictors=bool(seed % 2))
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
        {"named": np.zeros((2, 4), dtype=np.int64)},
        {"union16": np.zeros((2, 5), dtype=np.int32)},
        {"active": np.zeros(5, dtype=np.int64)},
    ],
)
def test_impossible_counts_are_refused(changes):
    with pytest.raises(UserError):
        make(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": None},
        {"parts": np.zeros((2, 2, 2, 4), dtype=np.uint8)},
        {"parts": np.zeros((2, 2, 2, 5), dtype=np.int64)},
        {"parts": np.zeros((2, 2, 2, 5), dtype=np.uint8)},  # do not add up to what was active
        {"part_tokens": ((1, 1), (1, 1))},
        {"part_tokens": ((100, 0),)},
        {"part_tokens": ((101, -1), (0, 0))},
        {"part_tokens": ((100, 0), (0, 0))},
        {"domains": ("a", "a")},
        {"domains": ()},
        {"domains": ("a", "b", "c")},
    ],
)
def test_impossible_parts_are_refused(changes):
    with pytest.raises(UserError, match="profile: "):
        replace(make_parts(), **changes)


def test_more_domains_than_are_told_apart_are_refused():
    with pytest.raises(UserError, match="at most 16"):
        make_parts(domains=tuple(map(str, range(17))))


def test_counts_are_stored_in_as_few_bytes_as_hold_them(tmp_path):
    path = tmp_path / "default.safetensors"
    write_profile(path, make_parts(4, 1000, 200))
    assert path.stat().st_size < 4 * 1000 * (4 + 3) + 2000


def test_version_1_is_read():
    profile = read_profile(FIXTURE)
    assert profile.active.tolist() == [[3, 0, 10], [1, 2, 4]]
    assert profile.union16.tolist() == [[9, 0, 10], [3, 6, 10]]
    assert (profile.tokens, profile.thresholds, profile.has_predictors) == (10, (0.0, 0.0), True)
    assert (profile.parts, profile.domains, profile.predictors_digest) == (None, (), None)


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
        (GOOD | {"format_version": "3"}, {}, "newer"),
        (GOOD | {"format_version": "2"}, {}, "damaged"),
        (GOOD | {"format_version": "0"}, {}, "no longer read"),
        (GOOD | {"format_version": "x"}, {}, "no format version"),
        (GOOD | {"format_version": "²"}, {}, "damaged"),
        (GOOD | {"format_version": "9" * 5000}, {}, "damaged"),
        (GOOD | {"kind": "predictors"}, {}, "holds no profile"),
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
