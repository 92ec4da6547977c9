"""A byte-level BPE vocabulary of a GGUF file as the `tokenizer.json` that it was made from.

The file names a rule by which text is split before the merges (`tokenizer.ggml.pre`); here is what the names mean, as
the tokenizers at Hugging Face write it that llama.cpp gave them to. Names that are not here are refused, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import tokenizers
from gguf import TokenType

from hybrid.checkpoint.gguf_vocabulary import MEND, Vocabulary
from profiler.artifacts import UserError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Rule:
    """How a text is split. pattern: its words, GPT-2's where there is none; digits: each is a word first. whole: a word
    that is a token is not merged; bos: a text is opened by BOS unless the file says otherwise.
    """

    pattern: str | None = None
    digits: bool = False
    composed: bool = False
    whole: bool = False
    bos: bool = False


_LLAMA3_RULE = Rule(LLAMA3, whole=True, bos=True)
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "llama3": _LLAMA3_RULE,
        "llama-v3": _LLAMA3_RULE,
        "llama-bpe": _LLAMA3_RULE,
        "falcon3": _LLAMA3_RULE,
        "smaug-bpe": Rule(LLAMA3),
        "qwen2": Rule(QWEN2, composed=True),
        "deepseek-r1-qwen": Rule(QWEN2, composed=True),
        "tekken": Rule(TEKKEN, whole=True, bos=True),
        "gpt-2": Rule(),
        "smollm": Rule(digits=True),
        "starcoder": Rule(digits=True),
        "refact": Rule(digits=True),
    }
)


def find_rule(vocabulary: Vocabulary) -> Rule:
    """The rule that a file names.

    Raises:
        UserError: it names none, or one that is not known.
    """
    name = vocabulary.settings.get("pre")
    text = name.decode(errors="replace") if isinstance(name, bytes) else ""
    if text not in RULES:
        raise UserError(
            f"the tokenizer splits text by the rule {text!r:.60}, which is not known; {MEND} "
            f"(known are {', '.join(RULES)})"
        )
    return RULES[text]


def tokenizer_json(vocabulary: Vocabulary) -> bytes:
    """`tokenizer.json`; control tokens and those that users defined are tokens with names of their own.

    Raises:
        UserError: the rule is not known, or the library refuses the vocabulary.
    """
    rule = find_rule(vocabulary)
    kinds = dict(enumerate(vocabulary.kinds))
    named = (TokenType.CONTROL, TokenType.USER_DEFINED)
    tokens = {token: i for i, token in enumerate(vocabulary.tokens) if kinds[i] is not TokenType.UNUSED}
    if len(tokens) + vocabulary.kinds.count(TokenType.UNUSED) != len(vocabulary.tokens):
        raise UserError(f"two tokens of the tokenizer have the same name; {MEND}")
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, i, kinds[i]) for token, i in tokens.items() if kinds[i] in named],
        "normalizer": {"type": "NFC"} if rule.composed else None,
        "pre_tokenizer": _split(rule),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule.whole,
            "vocab": tokens,
            "merges": list(vocabulary.merges),
        },
    }
    text = json.dumps(body, ensure_ascii=False)
    try:
        loaded = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"the tokenizer is no byte-level BPE ({error}); {MEND}") from error
    if any(loaded.token_to_id(token) != i for token, i in tokens.items()):
        raise UserError(f"the tokenizer's tokens do not keep their ids; {MEND}")
    return text.encode()


def _added(token: str, index: int, kind: TokenType) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **flags, "special": kind is TokenType.CONTROL}


def _split(rule: Rule) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if rule.digits:
        steps.append({"type": "Digits", "individual_digits": True})
    if rule.pattern is not None:
        steps.append({"type": "Split", "pattern": {"Regex": rule.pattern}, "behavior": "Isolated", "invert": False})
    bare = rule.pattern is None
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": bare})
    return {"type": "Sequence", "pretokenizers": steps}
