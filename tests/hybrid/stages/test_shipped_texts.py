"""The texts that ship with hybrid: of several kinds, readable, enough, and none that the demo is measured on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hybrid.stages.shipped import CALIBRATION_TEXT, HELDOUT_TEXT
from hybrid.stages.shipped_texts import SHIPPED_TOKENS, TEXTS, broad_texts, described
from hybrid.stages.texts import Corpus
from hybrid.tokenizer import load_tokenizer


def documents(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_kind_is_named_with_its_licence() -> None:
    notice = (TEXTS / "NOTICE").read_text(encoding="utf-8")
    names = [path.name for path in broad_texts()]
    assert names == ["code.jsonl", "everyday.jsonl", "law.jsonl", "reference.jsonl"]
    for name in names:
        assert f"{name} " in notice and name in described(broad_texts(), 1000)


def test_they_are_documents_with_enough_tokens(demo: Path) -> None:
    corpus = Corpus.open(broad_texts(), load_tokenizer(demo))
    counted = sum(len(window.ids) for window in corpus.windows(256))
    assert counted >= 0.9 * SHIPPED_TOKENS
    assert all(document.text.strip() for document in corpus.documents())


def test_scripts_and_languages_beside_english() -> None:
    text = "".join(document["text"] for document in documents(TEXTS / "everyday.jsonl"))
    ranges = {"Cyrillic": ("\u0400", "\u04ff"), "kana": ("\u3040", "\u30ff"), "Han": ("\u4e00", "\u9fff")}
    for name, (first, last) in ranges.items():
        assert any(first <= character <= last for character in text), name


def test_none_of_them_is_held_out_for_the_demo() -> None:
    shipped = {document["text"] for path in broad_texts() for document in documents(path)}
    kept = {document["text"] for path in (HELDOUT_TEXT, CALIBRATION_TEXT) for document in documents(path)}
    assert not shipped & kept


def test_profiling_without_a_text_says_what_is_used(
    hybrid: Callable[..., tuple[int, str, str]], demo_copy: Path
) -> None:
    options = ("--tokens", 1500, "--no-predictors")
    code, out, err = hybrid("profile", demo_copy, *options)
    assert code == 0 and "texts that come with hybrid" in err and "law.jsonl" in err
    assert "law.jsonl: chosen on" in out, "each kind is a domain"
