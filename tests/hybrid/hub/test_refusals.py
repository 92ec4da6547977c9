"""What goes wrong with a hub is told with what mends it; what was downloaded before serves where it cannot be asked."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import Faults

from hybrid.checkpoint.hub import Hub
from hybrid.checkpoint.hub_files import HubFile, Listing
from hybrid.checkpoint.source_name import HubName
from profiler.artifacts import UserError

TINY = HubName("org/tiny")


def bring(hub: Hub, name: HubName = TINY, notes: list[str] | None = None) -> Path:
    found = hub.listing(name, pytest.fail if notes is None else notes.append)
    return hub.fetch(found, lambda folder: None, lambda done, total: None)


def test_no_such_repository(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"org/none is not on http://127.*hf auth login"):
        bring(hub, HubName("org/none"))


def test_no_such_revision(hub: Hub) -> None:
    with pytest.raises(UserError, match="org/tiny has no revision v9"):
        bring(hub, HubName("org/tiny", "v9"))


def test_a_gated_repository_needs_a_token_which_other_hosts_do_not_get(
    hub: Hub, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.faults = Faults(gated="hf_secret")
    with pytest.raises(UserError, match=r"is gated: accept its conditions on http.*/org/tiny.*hf auth login"):
        bring(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (bring(hub) / "config.json").exists()
    assert served.with_token and not any("/lfs/" in request for request in served.with_token)


@pytest.mark.parametrize(
    ("status", "said"),
    [(429, "takes no more requests"), (503, "is not well"), (403, "refuses"), (401, "not accept your token")],
)
def test_a_hub_that_answers_no(hub: Hub, served: Any, status: int, said: str) -> None:
    served.faults = Faults(status=status)
    with pytest.raises(UserError, match=said):
        bring(hub)


def test_nothing_listens(hub: Hub) -> None:
    deaf = Hub("http://127.0.0.1:9", hub.cache)
    with pytest.raises(UserError, match=r"cannot be reached.*HF_ENDPOINT.*nothing of org/tiny was downloaded"):
        bring(deaf)


def test_offline_takes_what_was_downloaded(hub: Hub, served: Any) -> None:
    offline = Hub(hub.endpoint, hub.cache, offline=True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        bring(offline)
    folder, notes = bring(hub), list[str]()
    served.requests.clear()
    assert bring(offline, notes=notes) == folder
    assert served.requests == [] and "downloaded of org/tiny before" in notes[0]
    assert bring(Hub("http://127.0.0.1:9", hub.cache), notes=notes) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        bring(offline, notes=notes)


def test_a_connection_that_brings_nothing_is_given_up(hub: Hub, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    served.faults = Faults(break_after=0)
    with pytest.raises(UserError, match=r"connection to .* was lost while org/tiny was downloaded.*goes on where"):
        bring(hub)


def test_free_space_is_looked_at_first(hub: Hub, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.artifacts.free_bytes", lambda path: 1000)
    with pytest.raises(UserError, match=r"downloading org/tiny to .* needs .* are missing"):
        bring(hub)
    assert not any("/resolve/" in request for request in served.requests)


def test_a_disk_that_fills_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(url: str, sink: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hybrid.checkpoint.hub_transfer.http_get", full)
    with pytest.raises(UserError, match=r"the disk of .*hub-cache is full .*HF_HOME=FOLDER; the same command goes on"):
        bring(hub)


def test_a_check_that_fails_ends_it_before_the_weights(hub: Hub, served: Any) -> None:
    def check(folder: Path) -> None:
        raise UserError("not supported")

    with pytest.raises(UserError, match="not supported"):
        hub.fetch(hub.listing(TINY, pytest.fail), check, lambda done, total: None)
    assert not any("model.safetensors" in request for request in served.requests)


def test_two_processes_do_not_write_the_same_file(hub: Hub) -> None:

    found = hub.listing(TINY, pytest.fail)
    blob = hub.cache / "models--org--tiny" / "blobs" / found.files["config.json"].digest
    blob.parent.mkdir(parents=True)
    with blob.with_name(f"{blob.name}.incomplete").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"config\.json is being downloaded by another process"):
            bring(hub)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"size": -5}, "which no file has"),
        ({"size": 1 << 60}, "which no file has"),
        ({"size": "many"}, "which no file has"),
        ({"blobId": "../../../etc/passwd"}, "no digest"),
        ({"blobId": None}, "no digest"),
    ],
)
def test_a_hostile_listing(hub: Hub, served: Any, entry: dict[str, Any], said: str) -> None:
    served.repositories["org/tiny"].files["config.json"].update(entry)
    with pytest.raises(UserError, match=said):
        bring(hub)


def test_names_that_lead_elsewhere_are_not_listed(hub: Hub, served: Any) -> None:
    files = served.repositories["org/tiny"].files
    for name in ("../outside", "/etc/passwd", "a/../../b", "a\\b", ""):
        files[name] = {**files["config.json"], "rfilename": name}
    assert all(".." not in name and not name.startswith("/") for name in hub.listing(TINY, pytest.fail).files)


def test_an_index_that_leads_elsewhere(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    files = {name: HubFile(name, 10, "0" * 40) for name in ("config.json", "model.safetensors.index.json")}
    with pytest.raises(UserError, match=r"no \.safetensors file of the same folder"):
        Listing(TINY, "0" * 40, files).weight_files(tmp_path)


def test_an_answer_that_is_none(hub: Hub, served: Any) -> None:
    served.repositories["org/tiny"].commit = "../.."
    with pytest.raises(UserError, match="which is none"):
        bring(hub)
