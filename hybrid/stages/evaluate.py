"""Quality on a text: perplexity, and agreement with a reference, through the same code that decodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hybrid.runtime.engine import Engine
from hybrid.tokenizer import Tokenizer
from profiler.artifacts import UserError

Progress = Callable[[int, int], None]
TEXT_LIMIT = 1 << 30


@dataclass(frozen=True)
class Quality:
    """Over all predicted tokens of a text. agreement: share whose most likely token is the reference's;
    divergence: mean KL from the reference, in nats per token.
    """

    tokens: int
    perplexity: float
    agreement: float
    divergence: float


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: missing, empty, too large, binary, or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > TEXT_LIMIT:
            raise UserError(f"{path} is larger than 1 GiB; give a part of it")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the text {path}: {error.strerror}") from error
    if not data.strip():
        raise UserError(f"the text {path} is empty")
    if b"\0" in data:
        raise UserError(f"{path} is a binary file, not a text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error


def windows(tokenizer: Tokenizer, texts: Iterable[str], context: int) -> list[list[int]]:
    """Texts in consecutive pieces that fill the context, each opened as the tokenizer opens a text, none shared."""
    pieces = []
    for text in texts:
        opening = tokenizer.encode("")
        ids = tokenizer.encode(text)[len(opening) :]
        room = context - len(opening)
        pieces += [opening + ids[at : at + room] for at in range(0, len(ids), room)]
    return [piece for piece in pieces if len(piece) > 1]


@torch.inference_mode()
def evaluate(
    engines: Sequence[Engine], pieces: Sequence[Sequence[int]], progress: Progress | None = None
) -> list[Quality]:
    """The quality of each engine on the same pieces; the first one is the reference of all."""
    losses = [0.0] * len(engines)
    agreeing = [0] * len(engines)
    divergences = [0.0] * len(engines)
    tokens = sum(len(piece) - 1 for piece in pieces)
    for done, piece in enumerate(pieces):
        targets = torch.tensor(piece[1:])
        reference: torch.Tensor | None = None
        for i, engine in enumerate(engines):
            log_probabilities = engine.logits(piece)[:-1].log_softmax(dim=-1)
            reference = log_probabilities if reference is None else reference
            losses[i] -= log_probabilities.gather(1, targets[:, None]).double().sum().item()
            agreeing[i] += int((log_probabilities.argmax(-1) == reference.argmax(-1)).sum())
            divergences[i] += (reference.exp() * (reference - log_probabilities)).double().sum().item()
        if progress:
            progress(done + 1, len(pieces))
    if not tokens:
        raise UserError("the text is too short to measure anything on: it has fewer than two tokens")
    return [
        Quality(tokens, math.exp(min(loss / tokens, 700.0)), agree / tokens, max(0.0, divergence) / tokens)
        for loss, agree, divergence in zip(losses, agreeing, divergences, strict=True)
    ]
