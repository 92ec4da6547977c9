"""A hub on loopback, which serves checkpoints that tests made, and a cache of its own for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from loopback_hub import LoopbackHub

from hybrid.checkpoint.hub import Hub


@pytest.fixture
def repositories(llama_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with the repository `org/tiny`: a Llama checkpoint, and files that nobody needs."""
    folder = tmp_path / "repositories"
    shutil.copytree(llama_checkpoint, folder / "org" / "tiny")
    (folder / "org" / "tiny" / "README.md").write_text("of no use here\n")
    (folder / "org" / "tiny" / "onnx").mkdir()
    (folder / "org" / "tiny" / "onnx" / "model.onnx").write_bytes(bytes(50_000))
    return folder


@pytest.fixture
def served(repositories: Path) -> Iterator[Any]:
    """The hub, listening."""
    with LoopbackHub.of_folder(repositories) as hub:
        yield hub


@pytest.fixture
def hub(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """How the package sees it. So do commands, which ask the environment."""
    cache = tmp_path / "hub-cache"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("hybrid.checkpoint.hub_transfer.PAUSE", 0.01)
    monkeypatch.setattr("hybrid.checkpoint.hub.LIST_SECONDS", 600.0)  # the machine may stand still meanwhile
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 600)
    return Hub.from_environment()
