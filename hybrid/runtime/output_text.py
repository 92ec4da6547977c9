"""The text of an output as its tokens come: where a stop string cuts it, and how much of it may be shown."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid.tokenizer import Tokenizer


class OutputText:
    """The text that follows a prompt.

    Stop strings are looked for in what follows the prompt, never across its end. The text ends before the one that is
    complete first, of two such before the longer, however the text is cut into tokens. `text` holds what is certain:
    bytes of an unfinished character are not in it yet.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: tuple[str, ...]) -> None:
        self.text = ""
        self._stop = stop
        self._longest = max(map(len, stop), default=1)
        self._stream = tokenizer.stream(prompt_ids)
        self._ends: list[int] = []  # the text's length after each token
        self._cut = self._done = False

    def push(self, token_id: int) -> bool:
        """Take a token; whether the text ends before a stop string now."""
        found = self._extend(self._stream.push(token_id))
        self._ends.append(len(self.text))
        return found

    def finish(self) -> bool:
        """No token follows: what was held back belongs to the text. Whether a stop string ended it, now or before."""
        if not self._cut:
            self._extend(self._stream.finish())
        self._done = True
        return self._cut

    def visible(self) -> str:
        """All that is certain but what could become a stop string."""
        return self.text[: self._shown]

    def visible_tokens(self) -> int:
        """How many tokens the visible text is made of.

        While more may come: those whose text is shown, all of it. At the end all tokens, or where a stop string cut the
        text those of which anything is left.
        """
        if self._cut:  # the last begins before the cut, or writes nothing up to where that one begins
            starts = [0, *self._ends[:-1]]
            return sum(start < len(self.text) for start in starts)
        if self._done:
            return len(self._ends)
        count, shown = len(self._ends), self._shown
        while count and (self._ends[count - 1] > shown or self._is_silent(count - 1)):
            count -= 1
        return count

    @property
    def _shown(self) -> int:
        if self._done or self._cut:
            return len(self.text)
        return len(self.text) - max((self._overlap(stop) for stop in self._stop), default=0)

    def _is_silent(self, place: int) -> bool:
        """Whether the token added nothing: its text, if it has any, comes with a later one."""
        return self._ends[place] == (self._ends[place - 1] if place else 0)

    def _extend(self, text: str) -> bool:
        before = max(0, len(self.text) - self._longest + 1)
        self.text += text
        places = [(at + len(stop), at) for stop in self._stop if (at := self.text.find(stop, before)) >= 0]
        if places:
            self.text = self.text[: min(places)[1]]
            self._cut = True
        return bool(places)

    def _overlap(self, stop: str) -> int:
        """How many characters at the text's end could begin the stop string."""
        tail = self.text[-len(stop) :]
        at = tail.find(stop[0])
        while at >= 0:
            if stop.startswith(tail[at:]):
                return len(tail) - at
            at = tail.find(stop[0], at + 1)
        return 0
