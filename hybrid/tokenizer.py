"""Text to token ids and back, by the checkpoint's tokenizer files, whichever of three kinds they are."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import processors

from hybrid.token_bytes import BYTE_PIECE, bytes_rule, piece_bytes
from hybrid.tokenizer_files import fast_from_gpt2, fast_from_json, read_checked, refusing
from hybrid.tokenizer_settings import TokenizerSettings, read_settings
from profiler.artifacts import UserError

CANNOT = "the model's tokenizer files contradict themselves"
REPLACEMENT = "\ufffd"  # stands for bytes that are not valid UTF-8, or not yet


class Tokenizer(ABC):
    """One model's tokenizer.

    bos_id: the token that opens a text; None where there is none. eos_ids: the tokens that end a text. special_ids: the
    tokens that are no text. vocab_size: one more than the largest id; the model may have more outputs than that, and
    ids without a token decode to nothing. has_bytes: whether a text is what its tokens' bytes are in a row; where not,
    `token_bytes` is the text of each alone.
    """

    bos_id: int | None
    eos_ids: frozenset[int]
    special_ids: frozenset[int]
    vocab_size: int
    has_bytes: bool = True

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Token ids of a text; with `add_bos` it is opened as the tokenizer's own settings say, maybe not at all.

        Raises:
            UserError: the text is not Unicode (it holds lone surrogates).
        """
        _check_unicode(text)
        return self._encode(text, add_bos)

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of what a chat template wrote: names of special tokens stand for those tokens, and no BOS is added.

        Raises:
            UserError: as `encode`.
        """
        return self.encode(text, add_bos=False)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids; special tokens are left out, or written as they are called."""
        known = [i for i in ids if 0 <= i < self.vocab_size]
        return self._decode([i for i in known if i not in self.special_ids] if skip_special else known)

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A decoder for tokens that arrive one by one, following those of `after`, whose text is not given again."""
        return TextStream(self, after)

    def is_silent(self, token_id: int) -> bool:
        """Whether `decode` leaves the token out, so that its neighbours meet."""
        return token_id in self.special_ids or not 0 <= token_id < self.vocab_size

    @abstractmethod
    def is_byte(self, token_id: int) -> bool:
        """Whether the token is one raw byte, whose text depends on the bytes around it."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds within a text: UTF-8, or a part of a character's; a special token's name; b"" of none."""

    @abstractmethod
    def _encode(self, text: str, add_bos: bool) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...


class TextStream:
    """Text of tokens that arrive one by one: the pushes and the end together are what `decode` gives for all of them.

    A token is decoded after the token before it, so that leading spaces come out as they do within a text. Text is held
    back while a later token could still change it: bytes of an unfinished character, and runs of byte pieces.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._given = 0  # characters of the window's text that have been given out
        before = [i for i in after[-8:] if not tokenizer.is_silent(i)]  # two characters at least, of four bytes each
        text = tokenizer.decode(before)
        if not text.endswith(REPLACEMENT):
            self._window, self._given = before, len(text)

    def push(self, token_id: int) -> str:
        """Take a token; the text that became certain by it, often of that token, sometimes none."""
        if self._tokenizer.is_silent(token_id):
            return ""
        self._window.append(token_id)
        if self._tokenizer.is_byte(token_id):
            return ""
        text = self._tokenizer.decode(self._window)
        if text.endswith(REPLACEMENT):
            return self._give(text[:-1])
        new = self._give(text)
        if alone := self._tokenizer.decode([token_id]):
            self._window, self._given = [token_id], len(alone)
        return new

    def finish(self) -> str:
        """What was held back; the stream is empty afterwards."""
        rest = self._give(self._tokenizer.decode(self._window))
        self._window, self._given = [], 0
        return rest

    def _give(self, certain: str) -> str:
        new = certain[self._given :]
        self._given = max(self._given, len(certain))
        return new


class SentencePieceTokenizer(Tokenizer):
    """`tokenizer.model` of SentencePiece. Stretches of text between added tokens are encoded as texts of their own."""

    def __init__(self, path: Path, settings: TokenizerSettings) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=read_checked(path))
            self._before = self._model.encode("x")
            self._before_length = len(self._model.decode(self._before))
            self._pieces: int = self._model.get_piece_size()
            self._model.id_to_piece(list(range(self._pieces)))  # a piece that is no Unicode is found now
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} is not a SentencePiece model ({error}); copy it again") from error
        if not self._pieces:
            raise UserError(f"{path} holds no pieces; copy it again")
        self._added = settings.added
        self._texts = {i: content for content, i in self._added.items()}
        self.vocab_size = max([self._pieces, *(i + 1 for i in self._texts)])
        self.bos_id = self._id(settings.bos_token, self._model.bos_id())
        eos = self._id(settings.eos_token, self._model.eos_id())
        self.eos_ids = settings.eos_ids | ({eos} if eos is not None else set())
        self._opening = [self.bos_id] if self.bos_id is not None and settings.add_bos is not False else []
        control = {i for i in range(self._pieces) if self._model.is_control(i)}
        named = {i for name in settings.special if (i := self._id(name, -1)) is not None}
        self.special_ids = frozenset(control | named)
        self._split = _splitter(self._added)
        by_name = {self._model.id_to_piece(i): i for i in self.special_ids if i < self._pieces}
        self._chat_tokens = {**by_name, **self._added}
        self._split_chat = _splitter(self._chat_tokens)

    def is_byte(self, token_id: int) -> bool:
        """Whether the piece stands for one byte of UTF-8 that had no piece of its own."""
        return token_id < self._pieces and bool(self._model.is_byte(token_id))

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        if self._is_written(token_id):
            return str(self._texts.get(token_id) or self._model.id_to_piece(token_id)).encode()
        if not 0 <= token_id < self._pieces:
            return b""
        if self._model.is_unknown(token_id):
            return str(self._model.decode([token_id])).encode()
        return piece_bytes(self._model.id_to_piece(token_id))

    def _encode(self, text: str, add_bos: bool) -> list[int]:
        opening = list(self._opening) if add_bos else []
        return opening + self._encode_parts(self._split.split(text), self._added)

    def encode_chat(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        _check_unicode(text)
        return self._encode_parts(self._split_chat.split(text), self._chat_tokens)

    def _encode_parts(self, parts: Iterable[str], tokens: dict[str, int]) -> list[int]:
        return [i for part in parts for i in ([tokens[part]] if part in tokens else self._model.encode(part))]

    def _decode(self, ids: list[int]) -> str:
        texts: list[str] = []
        for written, group in groupby(ids, key=self._is_written):
            run = list(group)
            if written:
                texts += [self._texts.get(i) or self._model.id_to_piece(i) for i in run]
            elif run := [i for i in run if i < self._pieces]:
                first = not texts
                text = self._model.decode(run if first else self._before + run)
                texts.append(text if first else text[self._before_length :])
        return "".join(texts)

    def _is_written(self, token_id: int) -> bool:
        """Whether the token's text is its name, with no rule of SentencePiece applied to it."""
        return token_id in self._texts or token_id in self.special_ids

    def _id(self, token: str | None, default: int) -> int | None:
        if token is not None:
            found = self._added.get(token, self._model.piece_to_id(token))
            if token in self._added or self._model.id_to_piece(found) == token:
                return found
        return default if default >= 0 else None


class FastTokenizer(Tokenizer):
    """`tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`, by the `tokenizers` library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._model = tokenizer
        self._bytes_of = bytes_rule(tokenizer.decoder)
        self.has_bytes = self._bytes_of is not None
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_id = settings.bos_id if settings.bos_token is None else tokenizer.token_to_id(settings.bos_token)
        if settings.add_bos is not None:
            tokenizer.post_processor = self._opening(settings.add_bos)
        eos = None if settings.eos_token is None else tokenizer.token_to_id(settings.eos_token)
        self.eos_ids = settings.eos_ids | ({eos} if eos is not None else set())
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        return frozenset(i for piece, i in self._model.get_vocab().items() if BYTE_PIECE.fullmatch(piece))

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is called `<0xNN>`."""
        return token_id in self._byte_ids

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        token = self._model.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if token is None:
            return b""
        if self._bytes_of is None:
            return self._decode([token_id]).encode()
        return token.encode() if token_id in self.special_ids else self._bytes_of(token)

    def _opening(self, add_bos: bool) -> processors.TemplateProcessing:
        """tokenizer_config.json stands above what tokenizer.json does by itself, as it does in transformers."""
        if not add_bos:
            return processors.TemplateProcessing(single="$A", special_tokens=[])
        bos = None if self.bos_id is None else self._model.id_to_token(self.bos_id)
        if bos is None:
            raise UserError(
                "tokenizer_config.json asks for a BOS token that the tokenizer does not have; copy it again"
            )
        return processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, self.bos_id)])

    def _encode(self, text: str, add_bos: bool) -> list[int]:
        # The batch lets other threads go on meanwhile, which one text does not: a long prompt would hold up a server.
        with refusing(CANNOT):
            [encoding] = self._model.encode_batch_fast([text], add_special_tokens=add_bos)
        return list(encoding.ids)

    def _decode(self, ids: list[int]) -> str:
        with refusing(CANNOT):
            return str(self._model.decode(ids, skip_special_tokens=False))


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from error


def _splitter(names: Iterable[str]) -> re.Pattern[str]:
    """Splits a text at names of tokens, keeping them; longer names first."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else r"(?!)()")


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a directory: tokenizer.json, else tokenizer.model, else vocab.json and merges.txt.

    Raises:
        UserError: none of them is there, or the one that counts is damaged.
    """
    settings = read_settings(directory)
    if (path := directory / "tokenizer.json").is_file():
        return FastTokenizer(fast_from_json(path), settings)
    if (path := directory / "tokenizer.model").is_file():
        return SentencePieceTokenizer(path, settings)
    if all((directory / name).is_file() for name in ("vocab.json", "merges.txt")):
        return FastTokenizer(fast_from_gpt2(directory, settings), settings)
    raise UserError(
        f"there is no tokenizer in {directory}; looked for tokenizer.json, tokenizer.model, and vocab.json with "
        "merges.txt: copy them from where the checkpoint came from"
    )
