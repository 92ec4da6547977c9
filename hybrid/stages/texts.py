"""Texts as documents and windows of tokens, streamed: whatever their size, a few MiB of them are in memory.

Every `--text` argument is a domain. A text file is one document; a line of a JSONL file is one: its `text`, or its
`messages` through the model's chat template.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hybrid.chat_template import ChatTemplate, load_chat_template
from hybrid.stages.text_files import Note, TextFile, find_files, read_json_lines, read_text
from hybrid.tokenizer import Tokenizer
from profiler.artifacts import UserError

Pieces = Iterable[str]  # of one document's text, in order


def digest_text(digest: int) -> str:
    """A document's digest as files of JSON have it, since not every reader takes 64 bits: 16 hexadecimal digits."""
    return f"{digest:016x}"


@dataclass(frozen=True)
class Document:
    """One document. domain: of `Corpus.domains`, by index. name: its file, with the line in a JSONL file.

    is_chat: a chat template wrote it, special tokens included. pieces: gives its text in pieces of some MiB.
    """

    domain: int
    name: str
    is_chat: bool
    pieces: Callable[[], Pieces]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces())

    @property
    def digest(self) -> int:
        """The first 64 bits of the sha256 of its text: the same wherever the text lies. Reads all of it."""
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece.encode())
        return int.from_bytes(found.digest()[:8], "big")

    def token_ids(self, tokenizer: Tokenizer) -> Iterator[list[int]]:
        """Tokens of each piece, without what opens a text. A document of one piece has the tokens of its whole text.

        Raises:
            UserError: it cannot be read, or is no valid Unicode: names the document.
        """
        opening = len(tokenizer.encode(""))
        for piece in self.pieces():
            try:
                yield tokenizer.encode_chat(piece) if self.is_chat else tokenizer.encode(piece)[opening:]
            except UserError as error:
                raise UserError(f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document, the `source`, that see each other and no others; `document` counts from 0."""

    ids: list[int]
    document: int
    domain: int
    source: Document


@dataclass(frozen=True)
class Corpus:
    """Texts that were found and not yet read. files: by domain. model: where the chat template is looked for."""

    domains: tuple[str, ...]
    files: tuple[tuple[TextFile, ...], ...]
    tokenizer: Tokenizer
    model: Path | None = None

    @staticmethod
    def open(
        paths: Sequence[Path], tokenizer: Tokenizer, model: Path | None = None, note: Note = lambda line: None
    ) -> Corpus:
        """Find the files of texts: UTF-8 files, folders of them, `.jsonl` files.

        Args:
            paths: one for each domain.
            tokenizer: the model's.
            model: the model's directory or checkpoint, for the chat template; None where no text has `messages`.
            note: told what is left out.

        Raises:
            UserError: a path is missing, empty, binary, a folder without text, or given twice.
        """
        if not paths:
            raise UserError("no text was given: add --text FILE")
        twice = [str(path) for path, times in Counter(path.resolve() for path in paths).items() if times > 1]
        if twice:
            raise UserError(f"the text {twice[0]} is given twice")
        files = tuple(tuple(find_files(path, note)) for path in paths)
        return Corpus(_names(paths), files, tokenizer, model)

    @property
    def bytes(self) -> int:
        """Bytes of all files, known without reading them."""
        return sum(self.domain_bytes)

    @property
    def domain_bytes(self) -> list[int]:
        """Bytes of each domain's files."""
        return [sum(file.size for file in files) for files in self.files]

    def digest(self, on_bytes: Callable[[int], None] | None = None) -> str:
        """Hex sha256 over the domains' names and the files' contents; reads all of them, and so finds what is no text.

        `on_bytes` is told the size of each piece.

        Raises:
            UserError: a file cannot be read, or is not UTF-8: names file and line.
        """
        total = hashlib.sha256()
        for name, files in zip(self.domains, self.files, strict=True):
            total.update(f"{len(files)} files: {name}\0".encode())
            for file in files:
                total.update(f"{file.size} bytes, lines of JSON: {file.json_lines}\0".encode())
                for text in read_text(file):
                    data = text.encode()
                    total.update(data)
                    if on_bytes:
                        on_bytes(len(data))
        return total.hexdigest()

    def documents(self, domain: int | None = None) -> Iterator[Document]:
        """Every document, in the order of the arguments and of the files' names; or those of one domain.

        Raises:
            UserError: a line that is no JSON object with `text` or `messages`; messages that the chat template refuses.
        """
        for index in range(len(self.domains)) if domain is None else [domain]:
            for file in self.files[index]:
                if file.json_lines:
                    yield from self._lines(index, file)
                else:
                    yield Document(index, str(file.path), False, partial(read_text, file))

    def windows(self, context: int, tokens: int | None = None) -> Iterator[Window]:
        """Documents in consecutive windows that fill the context, each opened as the tokenizer opens a text.

        What a document's last window does not fill stays empty; windows of one token are left out. With `tokens`, the
        beginning of each domain, in proportion to the domains' bytes, with that many tokens altogether.

        Raises:
            UserError: as `documents`.
        """
        sizes = self.domain_bytes
        document, left, ahead = 0, tokens, sum(sizes)
        for domain, size in enumerate(sizes):
            share = None if left is None else round(left * size / ahead)
            taken = 0
            for found in self.documents(domain):
                for ids in self._document_windows(found, context):
                    kept = ids if share is None else ids[: share - taken]
                    if len(kept) > 1:
                        taken += len(kept)
                        yield Window(kept, document, domain, found)
                    if share is not None and share - taken < 2:
                        break
                document += 1
                if share is not None and share - taken < 2:
                    break
            left, ahead = None if left is None else left - taken, ahead - size

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The model's chat template."""
        return None if self.model is None else load_chat_template(self.model)

    def _document_windows(self, document: Document, context: int) -> Iterator[list[int]]:
        opening = [] if document.is_chat else self.tokenizer.encode("")
        room, pending = context - len(opening), list[int]()
        for ids in document.token_ids(self.tokenizer):
            pending += ids
            whole = len(pending) // room * room
            for at in range(0, whole, room):
                yield opening + pending[at : at + room]
            pending = pending[whole:]
        if pending:
            yield opening + pending

    def _lines(self, domain: int, file: TextFile) -> Iterator[Document]:
        for number, value in read_json_lines(file):
            name = f"{file.path}, line {number}"
            text = self._line_text(name, value)
            if text.strip():
                yield Document(domain, name, "text" not in value, partial(tuple[str], (text,)))

    def _line_text(self, name: str, value: dict[str, Any]) -> str:
        text, messages = value.get("text"), value.get("messages")
        if isinstance(text, str):
            return text
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise UserError(f"{name}: a `text`, or a list of `messages`, is expected")
        if self.template is None:
            raise UserError(f"{name} holds messages, and the model has no chat template; give lines with `text`")
        try:
            return self.template.render(messages)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Short names of the domains: file or folder names, whole paths where two of those are the same."""
    short = [path.resolve().name or str(path) for path in paths]
    again = Counter(short)
    return tuple(name if again[name] == 1 else str(path) for name, path in zip(short, paths, strict=True))
