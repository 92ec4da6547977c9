"""Sizes, digests, atomic files and folders, locks, and the errors that a user sees."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler import artifacts
from profiler.artifacts import (
    UserError,
    atomic_directory,
    atomic_writer,
    check_version,
    digest_json,
    directory_lock,
    explain_os_errors,
    format_size,
    parse_count,
    parse_size,
    read_json,
    read_json_object,
    remove_stale_partials,
    require_free_space,
    sha256_file,
    write_atomic,
    write_json,
)

FORK = multiprocessing.get_context("fork")


def names(path):
    return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("7.5 MiB", 15 << 19),
        ("512", 512),
        ("2G", 2 << 30),
        ("2GB", 2 * 10**9),
        (" 3 kb ", 3000),
        ("0", 0),
        ("1T", 1 << 40),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1.5.2", "8 parsecs", "1e9", "nan", "99999999999TB", "8GiB x"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match=r"is not a size|more memory"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "count"), [("5000", 5000), ("100k", 100_000), ("2M", 2_000_000), ("1.5m", 1_500_000), (" 1 K ", 1000)]
)
def test_numbers_of_tokens_as_people_write_them(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "k", "-5", "1e5", "2 tokens", "9" * 20, "9" * 5000, "nan", "1KiB"])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(UserError, match="not a number of tokens"):
        parse_count(text)


@given(st.integers(0, 1 << 60))
def test_a_formatted_size_is_the_size_to_a_tenth_of_its_unit(size):
    text = format_size(size)
    unit = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[text.split()[1]]
    assert abs(parse_size(text) - size) <= 0.051 * unit


def test_digest_of_a_file_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "CHUNK", 7)
    (tmp_path / "x").write_bytes(b"some content of a file")
    told = []
    assert sha256_file(tmp_path / "x", told.append) == hashlib.sha256(b"some content of a file").hexdigest()
    assert told == [7, 7, 7, 1]


def test_digest_of_json_knows_values_and_not_their_order():
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        digest_json(float("nan"))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    write_atomic(path, b"one")
    with pytest.raises(KeyboardInterrupt), atomic_writer(path) as file:
        file.write(b"tw")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one" and names(tmp_path) == ["x"]
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two" and names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EROFS, "choose a folder of your own"),
        (errno.EACCES, "choose a folder of your own"),
        (errno.EIO, "cannot do it: .*Input/output"),
    ],
)
def test_what_the_system_says_becomes_advice(tmp_path, number, message):
    with pytest.raises(UserError, match=message), explain_os_errors("do it", tmp_path / "not" / "there"):
        raise OSError(number, os.strerror(number))


def test_json_artifacts_carry_kind_and_version(tmp_path):
    write_json(tmp_path / "x.json", "plan", 3, {"a": 1})
    assert read_json(tmp_path / "x.json", "plan", 3, "make it") == {"kind": "plan", "format_version": 3, "a": 1}
    with pytest.raises(UserError, match=r"not a model file.*make it"):
        read_json(tmp_path / "x.json", "model", 3, "make it")
    with pytest.raises(UserError, match=r"newer.*update hybrid"):
        read_json(tmp_path / "x.json", "plan", 2, "make it")
    with pytest.raises(UserError, match="no longer read; make it anew with: make it"):
        read_json(tmp_path / "x.json", "plan", 4, "make it")
    assert read_json(tmp_path / "x.json", "plan", 4, "make it", older=(3,))["format_version"] == 3
    with pytest.raises(UserError, match="no longer read"):
        read_json(tmp_path / "x.json", "plan", 5, "make it", older=(2, 4))
    with pytest.raises(UserError, match="newer"):
        read_json(tmp_path / "x.json", "plan", 2, "make it", older=(1, 3))


@pytest.mark.parametrize("version", [None, "1", 1.0, True, []])
def test_a_version_is_a_whole_number(tmp_path, version):
    with pytest.raises(UserError, match="no format version"):
        check_version(tmp_path, version, 1, "make it")


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"{", b"[" * 100_000, b"\xff\xfe\xfa", b'{"a": 1' + b"0" * 5000])
def test_json_of_others_fails_as_a_user_error(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=r"x (is not valid JSON|should hold)"):
        read_json_object(tmp_path / "x")


def test_json_of_others_is_bounded_and_a_file(tmp_path):
    (tmp_path / "x").write_text(json.dumps({"a": "b" * 100}))
    with pytest.raises(UserError, match="at most 50 B"):
        read_json_object(tmp_path / "x", limit=50)
    with pytest.raises(UserError, match="is missing"):
        read_json_object(tmp_path / "y")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("fifo", "zeros", "."):
        with pytest.raises(UserError, match="is not a file"):
            read_json_object(tmp_path / name)


def test_free_space_says_how_much_is_missing(tmp_path):
    require_free_space(tmp_path / "not" / "there", 1, "this")
    with pytest.raises(UserError, match=r"this needs 1024\.0 TiB .* are free: .* TiB are missing"):
        require_free_space(tmp_path, 1 << 50, "this")


def hold(path, locked, proceed):
    with directory_lock(path, "hold"):
        locked.set()
        proceed.wait(60)


@pytest.mark.parametrize("end", ["normal", "killed"])
def test_a_directory_has_one_writer_until_it_ends(tmp_path, end):
    locked, proceed = FORK.Event(), FORK.Event()
    child = FORK.Process(target=hold, args=(tmp_path, locked, proceed))
    child.start()
    assert locked.wait(60)
    with pytest.raises(UserError, match="cannot write: another process"), directory_lock(tmp_path, "write"):
        pass
    if end == "killed":
        os.kill(child.pid, signal.SIGKILL)  # an event that a killed process waits for can no longer be set
    else:
        proceed.set()
    child.join()
    with directory_lock(tmp_path, "write"):
        pass


def test_a_directory_that_was_moved_before_the_lock_is_not_locked(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    real = artifacts.fcntl.flock

    def move_first(descriptor, operation):
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        real(descriptor, operation)

    monkeypatch.setattr(artifacts.fcntl, "flock", move_first)
    with pytest.raises(UserError, match="just finished"), directory_lock(tmp_path / "a", "write"):
        pass


def test_only_a_directory_can_be_locked(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="cannot write"), directory_lock(tmp_path / "x", "write"):
        pass


def test_a_folder_appears_complete(tmp_path):
    with atomic_directory(tmp_path / "a", "build") as (partial, had_remains):
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("x")
        assert names(tmp_path) == ["a.partial-build"] and not had_remains
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "sub" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_folder_that_fails_is_removed(tmp_path, error):
    with pytest.raises(error), atomic_directory(tmp_path / "a", "build") as (partial, _):
        (partial / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_remains_of_a_killed_run_are_removed_and_told(tmp_path):
    (tmp_path / "a.partial-build" / "sub").mkdir(parents=True)
    (tmp_path / "a.partial-build" / "file").write_text("x")
    (tmp_path / "a.partial-build" / "link").symlink_to(tmp_path)
    with atomic_directory(tmp_path / "a", "build") as (partial, had_remains):
        assert had_remains and names(partial) == []


def test_a_folder_that_holds_something_is_kept(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty"), atomic_directory(tmp_path / "a", "build"):
        pass
    assert names(tmp_path) == ["a"]


def test_of_two_builders_one_builds(tmp_path):
    with (
        atomic_directory(tmp_path / "a", "build") as (partial, _),
        pytest.raises(UserError, match="another process is writing"),
        atomic_directory(tmp_path / "a", "build"),
    ):
        pass
    assert names(tmp_path) == ["a"] and partial.name == "a.partial-build"


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(["x", ".x", ".x.partial-1", ".y.json.partial-22"]), min_size=1))
def test_stale_partials_and_nothing_else_are_removed(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("stale")
    (folder / "sub").mkdir()
    for name in files:
        (folder / "sub" / name).write_text("")
    removed = remove_stale_partials(folder)
    assert {p.name for p in removed} == {name for name in files if ".partial-" in name}
    assert set(names(folder / "sub")) == files - {p.name for p in removed}
