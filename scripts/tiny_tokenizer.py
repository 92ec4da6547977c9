"""A SentencePiece tokenizer trained on a few lines, for checkpoints that are made to be tried."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import sentencepiece


def train_sentencepiece(lines: Iterable[str], pieces: int, **options: Any) -> bytes:
    """A BPE model of so many pieces with byte fallback: `<unk>` 0, `<s>` 1, `</s>` 2. options: of the trainer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()
