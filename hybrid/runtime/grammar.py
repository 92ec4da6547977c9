"""Texts of a given form: a grammar, compiled by llguidance, says before each token which ones may follow.

`Grammar` is what a user asks for; a `GrammarFactory` compiles it for one tokenizer; a `Matcher` belongs to one
sequence. llguidance is loaded when the first grammar is compiled. Grammars come from anyone: their size is bounded, and
so is what compiling and each token may take (`LIMITS`).
"""

from __future__ import annotations

import json
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from hybrid.extras import install_command
from hybrid.runtime.grammar_tokens import GrammarTokens
from hybrid.tokenizer import Tokenizer
from profiler.artifacts import UserError, format_size

if TYPE_CHECKING:
    from llguidance import LLMatcher

GrammarKind = Literal["json_object", "json_schema", "regex", "lark"]
TEXT_LIMIT = 64 << 10  # characters of a grammar
# Between two parts of JSON: nothing, a space, or a new line and its indentation. A model that has lost its way would
# otherwise write spaces for ever.
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})?"
LIMITS = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 100_000,  # about 7 ms
    "step_max_items": 25_000,  # about 1 ms
    "max_lexer_states": 50_000,  # of at most 2 kB
    "max_grammar_size": 20_000,  # symbols
}


class GrammarError(UserError):
    """A grammar that cannot be used, or not with this model."""


@dataclass(frozen=True)
class Grammar:
    """What a text must be.

    kind: `json_object` (text is empty), `json_schema` (a JSON schema), `regex` (in the syntax of Rust's regex crate;
    the whole text matches it), or `lark` (llguidance's dialect of Lark, with a rule `start`).

    Raises:
        UserError: the kind is none of these, or the text is too long or plainly wrong.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            raise UserError(f"grammar kind is {self.kind!r}; one of {', '.join(get_args(GrammarKind))} is meant")
        if not isinstance(self.text, str):
            raise UserError(f"grammar text is a {type(self.text).__name__}; a string is meant")
        if len(self.text) > TEXT_LIMIT:
            raise GrammarError(f"the {self.kind} is {len(self.text)} characters; {format_size(TEXT_LIMIT)} is allowed")
        if (self.kind == "json_object") != (not self.text):
            raise GrammarError(f"a {self.kind} {'takes no' if self.text else 'needs a'} text")
        if self.kind == "json_schema":
            self._check_schema()

    def _check_schema(self) -> None:
        try:
            schema = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the json_schema is not JSON: {error}") from error
        if not isinstance(schema, dict):
            raise GrammarError(f"the json_schema is a {type(schema).__name__}; a JSON schema is an object")


class GrammarFactory:
    """Compiles grammars for one tokenizer.

    Raises:
        UserError: llguidance is not installed, or the tokenizer does not say what its tokens are in bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise UserError(f"grammars need llguidance: {install_command('serve')}") from error
        if not tokenizer.has_bytes:
            raise GrammarError("grammars do not work with this model: its tokenizer does not write texts byte by byte")
        self._library = llguidance
        tokens = GrammarTokens(tokenizer)
        self._tokens = llguidance.LLTokenizer(tokens, n_vocab=len(tokens.tokens), eos_token=tokens.eos_token_ids)  # type: ignore[arg-type]
        self._limits = llguidance.LLParserLimits(**LIMITS, verbose_errors=False)  # type: ignore[arg-type]
        self._vocab_size = tokenizer.vocab_size

    @staticmethod
    def of(tokenizer: Tokenizer) -> GrammarFactory:
        """The one that serves a tokenizer; made once, in a second or less."""
        with _making:
            if tokenizer not in _factories:
                _factories[tokenizer] = GrammarFactory(tokenizer)
            return _factories[tokenizer]

    def compile(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a text.

        Raises:
            GrammarError: it cannot be read, is too large, or nothing that the model can write begins it.
        """
        library = self._library.LLMatcher
        try:
            if grammar.kind == "regex":
                source = library.grammar_from_regex(grammar.text)
            elif grammar.kind == "lark":
                source = library.grammar_from_lark(grammar.text)
            else:
                schema = grammar.text or '{"type": "object"}'
                source = library.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the {grammar.kind} cannot be used: {error}") from error
        matcher = Matcher(
            library(self._tokens, source, log_level=0, limits=self._limits), grammar.kind, self._vocab_size
        )
        matcher.allowed()
        return matcher


class Matcher:
    """Where one text stands in its grammar. Each token goes by once, even if the text has to be computed again."""

    def __init__(self, matcher: LLMatcher, kind: GrammarKind, vocab_size: int) -> None:
        self._matcher, self._kind, self._vocab_size = matcher, kind, vocab_size
        self._allowed: npt.NDArray[np.bool_] | None = None
        self.ended = False  # nothing may follow
        self._check()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may follow, for each that the tokenizer has.

        Raises:
            GrammarError: none, or finding out takes more than is allowed.
        """
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._check()
            self._allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
            if not self._allowed.any():
                raise GrammarError(f"the {self._kind} cannot be used: nothing that this model can write meets it")
        return self._allowed

    def take(self, token_id: int) -> None:
        """The token was written.

        Raises:
            GrammarError: taking it takes more than is allowed.
        """
        self._allowed = None
        self._matcher.consume_token(token_id)
        self._check()
        self.ended = self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            said = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())
            raise GrammarError(f"the {self._kind} cannot be used: {_explained(said)}")


def _explained(said: str) -> str:
    """llguidance's message, cut, and in words where it is a code."""
    if said.startswith("NoExtensionBias"):
        return "nothing that this model can write meets it"
    return said if len(said) <= 300 else f"{said[:300]}…"


_making = threading.Lock()
_factories: weakref.WeakKeyDictionary[Tokenizer, GrammarFactory] = weakref.WeakKeyDictionary()
