"""`hybrid chat` on the command line."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from hybrid import display
from hybrid.cli_groups import with_groups
from hybrid.cli_opening import Opening
from hybrid.cli_options import ModelArgument
from hybrid.cli_sampling import Sampling
from hybrid.exits import loading

UNBOUNDED = 1 << 30  # tokens of an answer: what the context leaves room for
LEAST_TOP_P = 1e-9  # what files mean that recommend 0


@with_groups
def chat(
    model: ModelArgument,
    *,
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", "-n", min=1, help="Tokens of an answer at most; by default what the context holds."
        ),
    ] = None,
    sampling: Sampling,
    opening: Opening,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each answer as one line of JSON, with figures.")
    ] = False,
) -> None:
    """Talk to a model in the terminal. /help lists what can be said to the program itself.

    Ctrl-C stops an answer, Ctrl-D ends. From a pipe, each line is a message, and stdout carries the answers alone.
    How answers are drawn is the model's own recommendation where its files have one, else as the model has learned
    (temperature 1).

    Example: hybrid chat demo --system "You write Python." --temperature 0.7

    Example: echo "What is a neuron?" | hybrid chat demo -n 64
    """
    with loading():
        from hybrid.chat_prompt import ChatFormat
        from hybrid.chat_session import ChatSession
        from hybrid.chat_terminal import answer_lines, converse
        from hybrid.llm import LLM
        from hybrid.recommended import sampling_defaults

    with contextlib.ExitStack() as stack:
        sampling.params({})  # mistakes are told before a model is opened
        llm = stack.enter_context(opening.open(LLM, model, max_sequences=1))
        otherwise = sampling_defaults(llm.directory)
        otherwise["top_p"] = max(otherwise["top_p"], LEAST_TOP_P)
        params = sampling.params(otherwise, max_tokens=max_tokens or UNBOUNDED)
        form = ChatFormat.of(llm.directory)
        if form.note is not None:
            display.note(f"warning: {form.note}")
        session = ChatSession(llm, form, params, system)
        if sys.stdin.isatty():
            converse(session, as_json)
        else:
            answer_lines(session, sys.stdin.buffer, as_json)
