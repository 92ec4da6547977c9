"""What a repository of a hub holds, and which of its files are needed: no more are downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid.checkpoint.kept import SOURCE_CONFIG, TOKENIZER_FILES, TOKENIZER_LIMIT
from hybrid.checkpoint.shards import WEIGHT_FILES, indexed_shards
from hybrid.checkpoint.source_name import GGUF, HubName
from profiler.artifacts import UserError, format_size

CONFIG = "config.json"
# What pack reads beside weights.
TEXT_FILES = (CONFIG, *(name for name in TOKENIZER_FILES if name != SOURCE_CONFIG))
FILE_LIMIT = 1 << 44
SHOWN = 8
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. size: bytes. digest: hex sha256 where the hub keeps it as a large file, else git's sha1
    of it as a blob; also its name in the cache.
    """

    name: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 0 <= self.size <= FILE_LIMIT:
            raise UserError(f"the hub says that {self.name[:200]!r} has {str(self.size)[:40]} bytes, which no file has")
        if not isinstance(self.digest, str) or not _DIGEST.fullmatch(self.digest):
            raise UserError(f"the hub gives {self.name[:200]!r} no digest that is one")

    @property
    def is_large(self) -> bool:
        """Whether the digest is a sha256."""
        return len(self.digest) == 64


@dataclass(frozen=True)
class Listing:
    """A repository at one commit, as the hub lists it, or as it was downloaded before (`is_local`)."""

    name: HubName
    commit: str
    files: dict[str, HubFile]
    is_local: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise UserError(f"the hub names the commit {self.commit[:80]!r} of {self.name}, which is none")

    @property
    def origin(self) -> str:
        """What is meant, once and for all: `org/name@commit`, with the file where one is named."""
        return str(HubName(self.name.repository, self.commit, self.name.file))

    def first_files(self) -> list[HubFile]:
        """What is fetched first, because it is small and tells whether the rest is worth fetching.

        Raises:
            UserError: the repository holds no checkpoint; says what it holds instead.
        """
        if self.name.file is not None:
            return []
        self._require_checkpoint()
        names = [name for name in TEXT_FILES if name in self.files]
        weights = self.weight_file()
        if weights.endswith(".json"):
            names.append(weights)
        found = [self.files[name] for name in names]
        for file in found:
            if file.size > TOKENIZER_LIMIT:
                raise UserError(f"{file.name} of {self.name} has {format_size(file.size)}: it is not what it is called")
        return found

    def weight_file(self) -> str:
        """The one file of weights, or the index of several; safetensors before PyTorch's."""
        return next(name for name in WEIGHT_FILES if name in self.files)

    def weight_files(self, folder: Path) -> list[HubFile]:
        """The files of weights, by the index in `folder` where there are several.

        Raises:
            UserError: the repository does not have a file that is named.
        """
        if self.name.file is not None:
            return self._need(self._gguf_parts(self.name.file))
        name = self.weight_file()
        return self._need(indexed_shards(folder / name) if name.endswith(".json") else [name])

    def _need(self, names: Sequence[str]) -> list[HubFile]:
        missing = [name for name in names if name not in self.files]
        if not missing:
            return [self.files[name] for name in names]
        if self.is_local:
            raise UserError(f"{missing[0]} of {self.name} was not downloaded, and the hub cannot be asked for it")
        raise UserError(f"{self.name.repository} has no file {missing[0]}{self._offered()}")

    def _gguf_parts(self, name: str) -> list[str]:
        """All files of a split GGUF, in their order; the one file of another."""
        split = _SPLIT.fullmatch(name)
        if split is None:
            return [name]
        count = int(split["count"])
        if not 1 <= int(split["index"]) <= count <= 1000:
            raise UserError(f"{name} is no part of a split GGUF: parts are counted from 00001")
        return [f"{split['stem']}-{i + 1:05d}-of-{split['count']}{GGUF}" for i in range(count)]

    def _require_checkpoint(self) -> None:
        has_weights = any(name in self.files for name in WEIGHT_FILES)
        if CONFIG in self.files and has_weights:
            return
        lacking = " or ".join(["weights"] * (not has_weights) + [CONFIG] * (CONFIG not in self.files))
        raise UserError(f"{self.name} has no {lacking}, so it is no checkpoint that can be packed{self._offered()}")

    def _offered(self) -> str:
        """The GGUF files that could be meant instead."""
        found = sorted(name for name in self.files if name.endswith(GGUF))
        first = [name for name in found if (split := _SPLIT.fullmatch(name)) is None or int(split["index"]) == 1]
        if not first:
            return ""
        shown = ", ".join(f"{name} ({format_size(self.files[name].size)})" for name in first[:SHOWN])
        more = f" and {len(first) - SHOWN} more" if len(first) > SHOWN else ""
        revision = f"@{self.name.revision}" if self.name.revision else ""
        return f"; it has GGUF files: {shown}{more}; name one as {self.name.repository}{revision}/{first[0]}"
