"""A Hugging Face hub: lists a repository and downloads the files that are needed, and no more.

They go into the cache of the hub's own tools (`~/.cache/huggingface/hub`, or `HF_HOME`, `HF_HUB_CACHE`), so that what
those downloaded is not downloaded again: `blobs/DIGEST`, and links to these in `snapshots/COMMIT`. Unlike theirs, a
download that is interrupted or killed goes on with the byte where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers

from hybrid.checkpoint.hub_errors import OFFLINE, HubUnreachableError, connection_lost, explained
from hybrid.checkpoint.hub_files import HubFile, Listing
from hybrid.checkpoint.hub_transfer import UNFINISHED, fetch_file
from hybrid.checkpoint.source_name import HubName
from profiler.artifacts import UserError, require_free_space, write_atomic

LIST_SECONDS = 30.0
MARGIN = 16 << 20  # of the disk: folders, links
Progress = Callable[[int, int], None]
Note = Callable[[str], None]
Check = Callable[[Path], None]


@dataclass(frozen=True)
class Hub:
    """endpoint: the URL of a hub. cache: where its files are kept. offline: ask for nothing."""

    endpoint: str
    cache: Path
    offline: bool = False

    @staticmethod
    def from_environment() -> Hub:
        """By `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME` and `HF_HUB_OFFLINE`, as the hub's own tools read them."""
        return Hub(constants.ENDPOINT, Path(constants.HF_HUB_CACHE), constants.HF_HUB_OFFLINE)

    def listing(self, name: HubName, note: Note) -> Listing:
        """What a repository holds now; where the hub cannot be asked, what was downloaded of it before.

        `note` hears of the latter.

        Raises:
            UserError: there is no such repository or revision, it may not be read, or the hub cannot be asked and
                nothing was downloaded.
        """
        try:
            if self.offline:
                raise HubUnreachableError(OFFLINE)
            return self._ask(name)
        except HubUnreachableError as error:
            found = self._downloaded(name)
            if found is None:
                raise HubUnreachableError(f"{error}; nothing of {name} was downloaded before") from error
            note(f"{error}; going on with what was downloaded of {name} before (commit {found.commit[:12]})")
            return found

    def fetch(self, listing: Listing, check: Check, progress: Progress) -> Path:
        """Download what is needed and not there; the checkpoint's folder, or the GGUF file, in the cache.

        Args:
            listing: of the repository.
            check: told the folder once everything but the weights is in it; what it raises ends the download.
            progress: told `(done, total)` bytes of all that is needed, those included that were there.

        Raises:
            UserError: a file is missing or damaged, the disk is too small or full, the connection fails for good.
        """
        folder = self._storage(listing.name) / "snapshots" / listing.commit
        first = listing.first_files()
        self._bring(listing, first, 0, sum(file.size for file in first), lambda done, total: None)
        if first:
            check(folder)
        weights = listing.weight_files(folder)
        before = sum(file.size for file in first)
        self._bring(listing, weights, before, before + sum(file.size for file in weights), progress)
        if listing.name.revision != listing.commit and not listing.is_local:
            reference = self._storage(listing.name) / "refs" / (listing.name.revision or constants.DEFAULT_REVISION)
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(reference, listing.commit.encode())
        return folder if listing.name.file is None else folder / weights[0].name

    def _bring(self, listing: Listing, files: list[HubFile], before: int, total: int, progress: Progress) -> None:
        done = before

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        missing = [file for file in files if not self._has(listing, file)]
        if missing:
            room = sum(file.size - self._begun(listing, file) for file in missing)
            require_free_space(self.cache, room + MARGIN, f"downloading {listing.name} to {self.cache}")
        for file in files:
            if file in missing:
                self._bring_one(listing, file, on_bytes)
            else:
                on_bytes(file.size)

    def _bring_one(self, listing: Listing, file: HubFile, on_bytes: Callable[[int], None]) -> None:
        name, blob = listing.name, self._blob(listing, file)
        url = hf_hub_url(name.repository, file.name, revision=listing.commit, endpoint=self.endpoint)
        with explained(name, self.endpoint, self.cache):
            blob.parent.mkdir(parents=True, exist_ok=True)
            try:
                fetch_file(url, build_hf_headers(library_name="hybrid-inference"), blob, file, on_bytes)
            except HfHubHTTPError:
                raise
            except HTTPError as error:
                raise connection_lost(name, self.endpoint, error) from error
            pointer = self._pointer(listing, file)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            link = pointer.with_name(f".{pointer.name}.{os.getpid()}")
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, pointer.parent))
            link.replace(pointer)

    def _ask(self, name: HubName) -> Listing:
        with explained(name, self.endpoint, self.cache):
            try:
                info = HfApi(endpoint=self.endpoint, library_name="hybrid-inference").model_info(
                    name.repository, revision=name.revision, files_metadata=True, timeout=LIST_SECONDS
                )
            except (HfHubHTTPError, HFValidationError):
                raise
            except HTTPError as error:
                raise HubUnreachableError(
                    f"{self.endpoint} cannot be reached ({error}): look at the network, or name a mirror with "
                    "HF_ENDPOINT=URL"
                ) from error
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{self.endpoint} does not answer as a hub does ({error!r:.200})") from error
        if not isinstance(info.sha, str):
            raise UserError(f"{self.endpoint} names no commit of {name}: it does not answer as a hub does")
        files = [
            HubFile(
                sibling.rfilename,
                -1 if sibling.size is None else sibling.size,
                sibling.lfs.sha256 if sibling.lfs else sibling.blob_id or "",
            )
            for sibling in info.siblings or []
            if _is_plain(sibling.rfilename)
        ]
        return Listing(name, info.sha, {file.name: file for file in files})

    def _downloaded(self, name: HubName) -> Listing | None:
        """What is in the cache of a repository, of the commit that is meant."""
        storage, revision = self._storage(name), name.revision or constants.DEFAULT_REVISION
        reference = storage / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        folder = storage / "snapshots" / commit
        if not folder.is_dir():
            return None
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = [HubFile(str(path.relative_to(folder)), path.stat().st_size, "0" * 40) for path in paths]
        return Listing(name, commit, {file.name: file for file in files}, is_local=True) if files else None

    def _has(self, listing: Listing, file: HubFile) -> bool:
        pointer = self._pointer(listing, file)
        return pointer.is_file() and pointer.stat().st_size == file.size

    def _begun(self, listing: Listing, file: HubFile) -> int:
        blob = self._blob(listing, file)
        if blob.is_file() and blob.stat().st_size == file.size:
            return file.size
        partial = blob.with_name(blob.name + UNFINISHED)
        return min(partial.stat().st_size, file.size) if partial.is_file() else 0

    def _storage(self, name: HubName) -> Path:
        return self.cache / repo_folder_name(repo_id=name.repository, repo_type="model")

    def _blob(self, listing: Listing, file: HubFile) -> Path:
        return self._storage(listing.name) / "blobs" / file.digest

    def _pointer(self, listing: Listing, file: HubFile) -> Path:
        return self._storage(listing.name) / "snapshots" / listing.commit / file.name


def _is_plain(name: object) -> bool:
    """Whether a hub's name for a file leads nowhere but into the repository."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name or len(name) > 500:
        return False
    return not name.startswith("/") and all(part not in ("", ".", "..") for part in name.split("/"))
