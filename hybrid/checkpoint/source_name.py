"""What a user names as the source of a model: something on this machine, or a repository of a Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from profiler.artifacts import UserError

GGUF = ".gguf"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(
    rf"(?P<repository>{_PART}/{_PART})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[A-Za-z0-9._-]+|[A-Za-z0-9][A-Za-z0-9._+-]*))?"
    r"(?:/(?P<file>(?:[A-Za-z0-9_][A-Za-z0-9 ._+-]*/)*[A-Za-z0-9_][A-Za-z0-9 ._+-]*\.gguf))?"
)


@dataclass(frozen=True)
class HubName:
    """A repository of a hub: `org/name`, a revision of it (branch, tag or commit; None for its main branch), and one
    GGUF file of it where only that is meant.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


def parse_source(text: str) -> Path | HubName:
    """A path, or a name on a hub: `org/name`, `org/name@revision`, `org/name/file.gguf`, `org/name@revision/file.gguf`.

    What exists on this machine is meant before what has the same name on a hub; `./org/name` is always a path.

    Raises:
        UserError: nothing is there, and the text is no name on a hub.
    """
    path = Path(text).expanduser()
    try:
        if path.exists():
            return path
    except (OSError, ValueError) as error:
        raise UserError(f"{text[:200]!r} is no path: {error}") from error
    if found := _HUB.fullmatch(text):
        return HubName(found["repository"], found["revision"], found["file"])
    raise UserError(
        f"{text} does not exist; give the folder of a Hugging Face checkpoint, a {GGUF} file, or a name on the hub, "
        "such as org/name"
    )


def is_hub_name(text: str) -> bool:
    """Whether a text could name something on a hub, whatever there is on this machine."""
    return _HUB.fullmatch(text) is not None
