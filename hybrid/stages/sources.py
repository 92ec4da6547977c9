"""Where a model comes from, found: a folder or file on this machine, or what is downloaded from a hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid.checkpoint.config import read_config
from hybrid.checkpoint.hub import Hub
from hybrid.checkpoint.hub_files import CONFIG, Listing
from hybrid.checkpoint.reader import CONFIG_LIMIT
from hybrid.checkpoint.source_name import is_hub_name, parse_source
from profiler.artifacts import read_json_object

Progress = Callable[[int, int], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """path: on this machine, None for a hub's. hub, listing: where it is downloaded from."""

    path: Path | None
    hub: Hub | None = None
    listing: Listing | None = None

    @property
    def name(self) -> str:
        """What it is called in an origin: the whole path, or `org/name@commit`."""
        if self.hub_name is not None:
            return self.hub_name
        assert self.path is not None, "a source is here or on a hub"
        return str(self.path.absolute())

    @property
    def hub_name(self) -> str | None:
        """`org/name@commit`; None for what is on this machine."""
        return None if self.listing is None else self.listing.origin

    def fetch(self, progress: Progress) -> Path:
        """The folder or GGUF file, downloaded if need be; `progress(done, total)` hears of bytes.

        A checkpoint's config is read before its weights are downloaded: one that is not supported ends there.

        Raises:
            UserError: as `Hub.fetch`, or the checkpoint is not supported.
        """
        if self.path is not None:
            return self.path
        assert self.hub is not None and self.listing is not None, "a source is here or on a hub"
        return self.hub.fetch(self.listing, check_config, progress)


def find_source(text: str, note: Note) -> Source:
    """What a user means by a path or a name on a hub; a hub is asked what it has, and nothing is downloaded yet.

    `note` hears which of the two it is where it could be both, and where the hub could not be asked.

    Raises:
        UserError: there is no such thing, or the hub says no.
    """
    found = parse_source(text)
    if isinstance(found, Path):
        if is_hub_name(text):
            note(f"{text} is here, so the hub is not asked for it")
        return Source(found)
    hub = Hub.from_environment()
    return Source(None, hub, hub.listing(found, note))


def check_config(folder: Path) -> None:
    """Refuse a checkpoint by its config alone.

    Raises:
        UserError: it is not supported; says why.
    """
    read_config(read_json_object(folder / CONFIG, CONFIG_LIMIT))
