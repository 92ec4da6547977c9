"""The vocabularies that llama.cpp tests with, put back into tokenizer files, against the ids that it expects.

They are real ones (Llama 2 and 3, Qwen2, Phi 3, GPT-2 ...), in the folder `models` of its sources, and the expected ids
are those of the tokenizers at Hugging Face. The sources are in those of llama-cpp-python too:

    pip download --no-deps --no-binary :all: llama-cpp-python

Example: python scripts/check_vocabularies.py llama.cpp/models
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from hybrid.checkpoint.gguf_header import read_gguf_header
from hybrid.checkpoint.gguf_tokenizer import tokenizer_files
from hybrid.tokenizer import Tokenizer, load_tokenizer
from profiler.artifacts import UserError

BETWEEN = "\n__ggml_vocab_test__\n"
MANY = 1 << 22  # rows of embeddings, which these files do not have


def taken_out(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer_files(read_gguf_header(path), MANY).items():
            (Path(folder) / name).write_bytes(content)
        return load_tokenizer(Path(folder))


def main() -> None:
    """Print how many texts of each vocabulary have the expected ids; exit 1 where some of one that is read do not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    wrong = 0
    for path in sorted(parser.parse_args().folder.glob("ggml-vocab-*.gguf")):
        texts, ids = path.with_suffix(".gguf.inp"), path.with_suffix(".gguf.out")
        if not texts.exists():
            continue
        try:
            tokenizer = taken_out(path)
        except UserError as error:
            print(f"{path.stem}: refused: {str(error).partition(': ')[2] or error}")
            continue
        expected = [[int(i) for i in line.split()] for line in ids.read_text().split("\n")]
        pairs = list(zip(texts.read_text(encoding="utf-8").split(BETWEEN), expected, strict=False))
        right = sum(tokenizer.encode(text, add_bos=False) == found for text, found in pairs)
        wrong += len(pairs) - right
        print(f"{path.stem}: {right} of {len(pairs)} texts")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
