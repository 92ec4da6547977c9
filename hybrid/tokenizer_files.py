"""Tokenizer files of others, read: their sizes are checked first, and what is no tokenizer is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from hybrid.tokenizer_settings import TokenizerSettings
from profiler.artifacts import UserError, format_size

FILE_LIMIT = 128 << 20


def fast_from_json(path: Path) -> tokenizers.Tokenizer:
    """That of a `tokenizer.json`.

    Raises:
        UserError: the library cannot read it.
    """
    text = read_checked(path)
    with refusing(f"{path} is not a tokenizer that can be read"):
        return tokenizers.Tokenizer.from_buffer(text)


def fast_from_gpt2(directory: Path, settings: TokenizerSettings) -> tokenizers.Tokenizer:
    """Byte-level BPE (Radford et al., 2019, section 2.2), as GPT-2 and OPT have it, with the tokens added to it.

    Raises:
        UserError: the library cannot read the files, or added tokens do not follow the vocabulary.
    """
    paths = [directory / "vocab.json", directory / "merges.txt"]
    for path in paths:
        _check_size(path)
    with refusing(f"{paths[0]} and {paths[1]} are no byte-level BPE"):
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(*map(str, paths)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.add_prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        _add_tokens(tokenizer, settings)
    return tokenizer


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever the `tokenizers` library raises over what a file says, as a `UserError` that begins with `what`.

    It raises bare Exception, and where its Rust code panics, something that is a BaseException alone.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interrupt
        raise UserError(f"{what} ({str(error)[:500]}); copy it again from where the checkpoint came from") from error


def _add_tokens(tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    """Tokens with names of their own, by rising id: the library gives new ones the next ids in turn."""
    for content, token_id in sorted(settings.added.items(), key=lambda item: item[1]):
        token = tokenizers.AddedToken(content, normalized=False, special=content in settings.special)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(content) != token_id:
            raise UserError(f"added token {content!r} is said to be {token_id}, which does not follow the vocabulary")
    tokenizer.add_special_tokens(sorted(c for c in settings.special if tokenizer.token_to_id(c) is not None))


def read_checked(path: Path) -> bytes:
    """Raises UserError where a file is larger than any tokenizer is."""
    _check_size(path)
    return path.read_bytes()


def _check_size(path: Path) -> None:
    if (size := path.stat().st_size) > FILE_LIMIT:
        raise UserError(f"{path} is {format_size(size)}; a tokenizer has at most {format_size(FILE_LIMIT)}")
