"""What a model directory was packed from: `origin.json`, which pack writes and nothing but `hybrid prepare` reads.

It says whether the directory is that of a source without reading the source again; which weights it holds is what its
manifest says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from profiler.artifacts import UserError, from_json, read_json, write_json

ORIGIN = "origin.json"
KIND, VERSION = "origin", 1
LIMIT = 16 << 20
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Origin:
    """source: a whole path, or `org/name@commit` of a hub. options: by which it was read, such as `activation`, where
    they were given. files: of a path, by name: bytes and the time of the last change in nanoseconds.
    """

    source: str
    options: dict[str, str]
    files: dict[str, Stamp]

    def __post_init__(self) -> None:
        stamps = self.files.values() if isinstance(self.files, dict) else [None]
        whole = all(isinstance(s, tuple) and len(s) == 2 and all(isinstance(n, int) for n in s) for s in stamps)
        options = [*self.options, *self.options.values()] if isinstance(self.options, dict) else [None]
        if not all(isinstance(text, str) for text in (self.source, *options)) or not whole:
            raise UserError("an origin is a source, options and the stamps of files")

    @staticmethod
    def of_files(source: Path, options: dict[str, str], files: list[Path]) -> Origin:
        """That of a folder or file on this machine, as its files are now."""
        stats = {str(path): path.stat() for path in files}
        return Origin(str(source), options, {name: (s.st_size, s.st_mtime_ns) for name, s in stats.items()})

    def write(self, directory: Path) -> None:
        """Write it into a model directory."""
        write_json(directory / ORIGIN, KIND, VERSION, asdict(self))


def read_origin(directory: Path) -> Origin | None:
    """What a model directory says that it was packed from; None where it says nothing that can be read."""
    try:
        body = read_json(directory / ORIGIN, KIND, VERSION, f"hybrid prepare SRC {directory}", LIMIT)
        fields = {key: value for key, value in body.items() if key not in ("kind", "format_version")}
        if isinstance(files := fields.get("files"), dict):
            fields["files"] = {name: tuple(s) if isinstance(s, list) else s for name, s in files.items()}
        return from_json(Origin, fields, ORIGIN)
    except UserError:
        return None
