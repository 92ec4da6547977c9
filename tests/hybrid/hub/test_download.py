"""Downloads from a hub on loopback: only what is needed, on from where they stopped, checked."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from loopback_hub import Faults, Repository

from hybrid.checkpoint.hub import Hub
from hybrid.checkpoint.hub_transfer import UNFINISHED
from hybrid.checkpoint.reader import Checkpoint
from hybrid.checkpoint.source_name import HubName, is_hub_name, parse_source
from profiler.artifacts import UserError

TINY = HubName("org/tiny")
WEIGHTS = "model.safetensors"


def quiet(done: int, total: int) -> None:
    """No progress."""


def bring(hub: Hub, name: HubName = TINY) -> Path:
    notes: list[str] = []
    return hub.fetch(hub.listing(name, notes.append), lambda folder: None, quiet)


def resolved(served: Any) -> list[str]:
    """Names of files that were asked for."""
    return sorted({request.rsplit("/", 1)[1] for request in served.requests if "/resolve/" in request})


def blobs(hub: Hub) -> Path:
    return hub.cache / "models--org--tiny" / "blobs"


def test_what_is_needed_is_downloaded_and_is_the_checkpoint(hub: Hub, served: Any, repositories: Path) -> None:
    told: list[tuple[int, int]] = []
    checked: list[list[str]] = []

    def check(folder: Path) -> None:
        checked.append(sorted(path.name for path in folder.iterdir()))

    folder = hub.fetch(hub.listing(TINY, pytest.fail), check, lambda done, total: told.append((done, total)))
    original = repositories / "org" / "tiny"
    for path in folder.iterdir():
        assert path.read_bytes() == (original / path.name).read_bytes()
    expected = {"config.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json", WEIGHTS}
    assert {path.name for path in folder.iterdir()} == expected & {path.name for path in original.iterdir()}
    assert "model.onnx" not in resolved(served) and "README.md" not in resolved(served)
    assert checked and WEIGHTS not in checked[0] and "config.json" in checked[0]
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in folder.iterdir())
    assert Checkpoint.open(folder).spec == Checkpoint.open(original).spec


def test_what_is_there_is_not_downloaded_again(hub: Hub, served: Any) -> None:
    folder = bring(hub)
    served.requests.clear()
    assert bring(hub) == folder
    assert resolved(served) == []


def test_a_download_goes_on_with_the_byte_where_it_stopped(hub: Hub, served: Any, monkeypatch: Any) -> None:
    size = served.repositories["org/tiny"].files[WEIGHTS]["size"]

    with monkeypatch.context() as patch:
        patch.setattr("hybrid.checkpoint.hub_transfer.http_get", _breaking_after(40_000))
        with pytest.raises(KeyboardInterrupt):
            bring(hub)
    (partial,) = blobs(hub).glob(f"*{UNFINISHED}")
    begun = partial.stat().st_size
    assert 0 < begun < size
    folder = bring(hub)
    assert served.ranges == [begun]
    assert hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() == (folder / WEIGHTS).resolve().name
    assert not list(blobs(hub).glob(f"*{UNFINISHED}"))


def _breaking_after(most: int) -> Any:
    """`http_get` that is interrupted once a large file has so many bytes."""
    from huggingface_hub.file_download import http_get

    def get(url: str, sink: Any, **options: Any) -> None:
        if options["expected_size"] < most:
            return http_get(url, sink, **options)
        before = sink.write

        def write(chunk: bytes) -> int:
            before(chunk[:most])
            raise KeyboardInterrupt

        sink.write = write
        return http_get(url, sink, **options)

    return get


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_connections_that_break_are_made_anew(hub: Hub, served: Any, ignores_ranges: bool) -> None:
    served.faults = Faults(break_after=30_000, breaks=2, ignore_ranges=ignores_ranges)
    told: list[int] = []
    folder = hub.fetch(hub.listing(TINY, pytest.fail), lambda folder: None, lambda done, total: told.append(done))
    assert Checkpoint.open(folder).parameters > 0
    assert told[-1] == sum(path.stat().st_size for path in folder.iterdir())
    weights = [request for request in served.requests if request.startswith("GET /lfs")]
    assert len(weights) >= 3


def test_a_damaged_file_is_refused_and_fetched_anew(hub: Hub, served: Any) -> None:
    served.faults = Faults(damaged=frozenset([WEIGHTS]))
    with pytest.raises(UserError, match="came damaged"):
        bring(hub)
    assert not list(blobs(hub).glob(f"*{UNFINISHED}"))
    served.faults = Faults()
    assert Checkpoint.open(bring(hub)).parameters > 0


def test_a_small_damaged_file_is_refused_too(hub: Hub, served: Any) -> None:
    served.faults = Faults(damaged=frozenset(["config.json"]))
    with pytest.raises(UserError, match=r"config\.json came damaged"):
        bring(hub)


def test_more_bytes_than_stated_are_not_written(hub: Hub, served: Any) -> None:
    served.faults = Faults(longer=frozenset([WEIGHTS]))
    with pytest.raises(UserError, match="sends more than"):
        bring(hub)
    (partial,) = blobs(hub).glob(f"*{UNFINISHED}")
    assert partial.stat().st_size <= served.repositories["org/tiny"].files[WEIGHTS]["size"]


def test_shards_are_those_of_the_index(hub: Hub, served: Any, repositories: Path) -> None:
    folder = repositories / "org" / "tiny"
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    safetensors.torch.save_file(tensors, folder / "model-00003-of-00002.safetensors")
    served.repositories["org/tiny"] = Repository(folder)
    found = bring(hub)
    assert sorted(path.name for path in found.glob("model*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert Checkpoint.open(found).parameters > 0


def test_one_gguf_file_of_many(hub: Hub, served: Any, repositories: Path) -> None:
    folder = repositories / "org" / "quants"
    folder.mkdir()
    for kind in ("Q4_0", "Q8_0"):
        (folder / f"tiny-{kind}.gguf").write_bytes(os.urandom(20_000))
    for part in (1, 2):
        (folder / f"split-{part:05d}-of-00002.gguf").write_bytes(os.urandom(12_000))
    served.repositories["org/quants"] = Repository(folder)
    path = bring(hub, HubName("org/quants", None, "tiny-Q4_0.gguf"))
    assert path.name == "tiny-Q4_0.gguf" and path.read_bytes() == (folder / path.name).read_bytes()
    assert resolved(served) == ["tiny-Q4_0.gguf"]
    split = bring(hub, HubName("org/quants", "main", "split-00002-of-00002.gguf"))
    assert split.name == "split-00001-of-00002.gguf" and (split.parent / "split-00002-of-00002.gguf").exists()
    with pytest.raises(UserError, match=r"no weights or config\.json.*org/quants/split-00001-of-00002\.gguf"):
        bring(hub, HubName("org/quants"))
    with pytest.raises(UserError, match=r"has no file other\.gguf; it has GGUF files: split"):
        bring(hub, HubName("org/quants", None, "other.gguf"))


def test_names() -> None:
    commit = "0" * 40
    assert parse_source("org/name") == HubName("org/name")
    assert parse_source(f"org/name@{commit}") == HubName("org/name", commit)
    assert parse_source("org/name@refs/pr/3") == HubName("org/name", "refs/pr/3")
    assert parse_source("org/name@v1/a/b-Q4_0.gguf") == HubName("org/name", "v1", "a/b-Q4_0.gguf")
    assert str(parse_source("org/name@v1/b.gguf")) == "org/name@v1/b.gguf"
    for text in ("name", "./org/name", "/org/name", "org/name/../x.gguf", "org/name/file.bin", "a/b/c", "org/name@"):
        assert not is_hub_name(text)
        with pytest.raises(UserError, match="does not exist"):
            parse_source(text)


def test_a_folder_here_is_meant_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_source("org/tiny") == Path("org/tiny")
