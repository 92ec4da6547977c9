"""`ChatSession`: one conversation with a model, kept within its context.

Each answer's prompt is the whole conversation again; what of it was computed before the engine finds in its pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from hybrid.chat_prompt import ChatFormat
from hybrid.llm import LLM, Completion, SamplingParams
from profiler.artifacts import UserError

Turn = dict[str, str]  # `role` and `content`


class ChatSession:
    """A conversation.

    turns: all of it but the system message. forgotten: so many of the oldest turns are not shown to the model any more,
    since they do not fit its context. system: the system message, or "" for none. dropped: the last question, if it has
    no answer. last: what became of the last one that has.

    Args:
        llm: the model, opened.
        chat: how it is shown a conversation.
        params: of every answer; `max_tokens` beyond the context mean as many as fit. With a seed, each answer is drawn
            with one of its own, so that asking again gives another answer, and the same questions the same ones.
        system: the system message.

    """

    def __init__(self, llm: LLM, chat: ChatFormat, params: SamplingParams, system: str = "") -> None:
        self._llm, self._chat = llm, chat
        self._params = replace(params, stop=(*params.stop, *chat.stop))
        self.system = system
        self.turns: list[Turn] = []
        self.forgotten = 0
        self.dropped: str | None = None
        self.last: Completion | None = None
        self._asked = 0

    def messages(self) -> list[Turn]:
        """The whole conversation, as it is saved."""
        return self._opening() + self.turns

    def ask(self, question: str, cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The answer, piece by piece; both belong to the conversation once all of it was given.

        A question whose answer was cancelled before it began, or that could not be asked, is dropped again.

        Raises:
            UserError: even alone it does not fit the context, or the chat template refuses the conversation.
        """
        self.dropped = question
        turns = [*self.turns, {"role": "user", "content": question}]
        forgotten, ids = self._fitted(turns)
        params = self._params
        if params.seed is not None:
            params = replace(params, seed=(params.seed + self._asked) % (1 << 64))
        self._asked += 1
        pieces = self._llm.stream(ids, params, cancelled)
        self.forgotten = forgotten
        yield from _without_leading_space(pieces)
        self.last = self._llm.last_completion
        answer = self.last.text.strip()
        if answer or self.last.finish_reason != "cancelled":
            self.turns, self.dropped = [*turns, {"role": "assistant", "content": answer}], None

    def take_back(self) -> str | None:
        """Drop the last question and its answer; the question, or None where there is none."""
        if not self.turns:
            return None
        question, self.turns = self.turns[-2]["content"], self.turns[:-2]
        self.forgotten, self.dropped = min(self.forgotten, len(self.turns)), None
        return question

    def clear(self) -> None:
        """Begin anew, with the same system message."""
        self.turns, self.forgotten, self.dropped, self.last = [], 0, None, None

    def figures(self) -> dict[str, Any]:
        """What is known of the last answer, and how full the context is."""
        last = self.last
        if last is None:
            return {}
        seconds = None if last.first_token_seconds is None else round(last.first_token_seconds, 4)
        return {
            "finish_reason": last.finish_reason,
            "prompt_tokens": len(last.prompt_token_ids),
            "cached_tokens": last.cached_tokens,
            "completion_tokens": len(last.token_ids),
            "first_token_seconds": seconds,
            "context": self._llm.context,
            "forgotten_turns": self.forgotten,
        }

    def _opening(self) -> list[Turn]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _fitted(self, turns: list[Turn]) -> tuple[int, list[int]]:
        """How many of the oldest turns are left out, and the prompt's token ids.

        When the answer's room, at most a quarter of the context, is gone, as many are left out as leave half of the
        context free: each time that the beginning changes, the whole prompt is computed anew.
        """
        context, forgotten = self._llm.context, self.forgotten
        ids = self._encoded(turns[forgotten:])
        if len(ids) + min(self._params.max_tokens, context // 4) > context:
            while len(ids) > context // 2 and forgotten < len(turns) - 1:
                forgotten += 2  # a question and its answer
                ids = self._encoded(turns[forgotten:])
        if len(ids) >= context:
            raise UserError(
                f"the message takes {len(ids)} tokens with what belongs to it, and the context has {context}; shorten "
                "it or the system message, or ask for a larger --context"
            )
        return forgotten, ids

    def _encoded(self, turns: list[Turn]) -> list[int]:
        return self._chat.encode(self._llm.tokenizer, self._opening() + turns)


def _without_leading_space(pieces: Iterator[str]) -> Iterator[str]:
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        if shown:
            yield shown
