"""`hybrid prepare` and `hybrid pack` of names on a hub: from nothing, again, interrupted, offline, of a GGUF file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import Repository

from hybrid.checkpoint.hub import Hub
from hybrid.stages.prepare import PrepareSettings, prepare
from hybrid.store.files import ModelFiles
from hybrid.store.origin import read_origin

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def arguments(text: Path, tmp_path: Path) -> list[Any]:
    """All that follows `hybrid prepare SRC`."""
    return [tmp_path / "model", "--text", text, "--no-predictors", "--json"]


def weights(served: Any) -> list[str]:
    return [request for request in served.requests if "safetensors" in request and request.startswith("GET")]


def test_from_a_name_to_a_model(
    hub: Hub, served: Any, hybrid: Command, arguments: list[Any], llama_checkpoint: Path, llama_directory: Path
) -> None:
    code, out, err = hybrid("prepare", "org/tiny", *arguments)
    assert code == 0, err
    report = json.loads(out)
    commit = served.repositories["org/tiny"].commit
    assert report["schema"] == "hybrid.prepare/1" and report["source"] == f"org/tiny@{commit}"
    assert [(step["phase"], step["outcome"]) for step in report["steps"]] == [
        ("download", "done"),
        ("pack", "done"),
        ("profile", "done"),
        ("plan", "done"),
    ]
    files = ModelFiles.open_files(arguments[0])
    assert files.pack_digest == ModelFiles.open_files(llama_directory).pack_digest
    origin = read_origin(arguments[0])
    assert origin is not None and origin.source == f"org/tiny@{commit}" and not origin.files
    for phase in ("download: ", "pack: ", "profile: ", "plan: ", "altogether"):
        assert phase in err


def test_again_nothing_is_downloaded_even_if_the_cache_is_gone(
    hub: Hub, served: Any, hybrid: Command, arguments: list[Any]
) -> None:
    assert hybrid("prepare", "org/tiny", *arguments)[0] == 0
    shutil.rmtree(hub.cache)
    served.requests.clear()
    code, out, _ = hybrid("prepare", "org/tiny", *arguments)
    assert code == 0 and {step["outcome"] for step in json.loads(out)["steps"]} == {"kept"}
    assert not any("/resolve/" in request for request in served.requests)


def test_offline_once_it_was_downloaded(
    hub: Hub, hybrid: Command, arguments: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hybrid("prepare", "org/tiny", *arguments)[0] == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.rmtree(arguments[0])
    code, out, err = hybrid("prepare", "org/tiny", *arguments)
    assert code == 0 and json.loads(out)["steps"][1]["outcome"] == "done"
    assert "going on with what was downloaded" in err


def test_an_interrupted_download_goes_on(hub: Hub, served: Any, text: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(texts=(text,), predictors=False)

    def interrupt(status: Any) -> None:
        if weights(served):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("org/tiny", tmp_path / "model", settings, interrupt)
    assert not (tmp_path / "model").exists()
    begun = sum(path.stat().st_size for path in hub.cache.rglob("*.incomplete"))
    assert begun
    report = prepare("org/tiny", tmp_path / "model", settings)
    assert report.steps[0].outcome == "done"
    size = served.repositories["org/tiny"].files["model.safetensors"]["size"]
    assert begun == size or served.ranges == [begun]


def test_an_interrupt_ends_the_command_with_130_and_says_how_to_go_on(
    hub: Hub, hybrid: Command, arguments: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hybrid.checkpoint.hub_transfer.http_get", interrupted)
    code, out, err = hybrid("prepare", "org/tiny", *arguments)
    assert (code, out) == (130, "")
    assert "the same command goes on" in err and "Traceback" not in err


def test_an_unsupported_model_is_refused_before_its_weights(
    hub: Hub, served: Any, refused: Callable[..., str], arguments: list[Any], repositories: Path
) -> None:
    config = repositories / "org" / "tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["MambaForCausalLM"]}))
    served.repositories["org/tiny"] = Repository(config.parent)
    assert "MambaForCausalLM' is not supported" in refused("prepare", "org/tiny", *arguments)
    assert not weights(served) and not Path(arguments[0]).exists()


def test_pack_takes_a_name_too(
    hub: Hub, hybrid: Command, tmp_path: Path, llama_directory: Path, refused: Callable[..., str]
) -> None:
    code, out, err = hybrid("pack", "org/tiny", tmp_path / "packed")
    assert code == 0 and "next: hybrid profile" in out, err
    assert ModelFiles.open_files(tmp_path / "packed").pack_digest == ModelFiles.open_files(llama_directory).pack_digest
    assert "is not on http" in refused("pack", "org/none", tmp_path / "other")
    assert "does not exist; give the folder" in refused("pack", "./org/tiny", tmp_path / "other")


def test_a_gguf_file_of_a_hub(
    hub: Hub,
    served: Any,
    repositories: Path,
    hybrid: Command,
    arguments: list[Any],
    llama_checkpoint: Path,
    make_gguf: Callable[..., Path],
) -> None:
    folder = repositories / "org" / "quants"
    folder.mkdir()
    make_gguf(llama_checkpoint, folder / "tiny-f16.gguf", kind="f16")
    served.repositories["org/quants"] = Repository(folder)
    code, out, err = hybrid("prepare", "org/quants/tiny-f16.gguf", *arguments, "--activation", "relu")
    assert code == 0, err
    assert json.loads(out)["source"].endswith("/tiny-f16.gguf")
    code, out, _ = hybrid("prepare", "org/quants/tiny-f16.gguf", *arguments, "--activation", "relu")
    assert {step["outcome"] for step in json.loads(out)["steps"]} == {"kept"}
