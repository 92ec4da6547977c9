"""`hybrid run` on the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid import display, reports
from hybrid.cli_groups import with_groups
from hybrid.cli_opening import Opening
from hybrid.cli_options import JsonOption, ModelArgument
from hybrid.cli_prompt import read_prompt
from hybrid.cli_sampling import Sampling
from hybrid.exits import UsageError, loading

if TYPE_CHECKING:
    from hybrid.llm import LLM, Completion, SamplingParams

MOST_TOGETHER = 16  # texts of one prompt that are decoded together


@with_groups
def run(
    model: ModelArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text to complete; - reads it from stdin.", show_default=False),
    ] = None,
    *,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the prompt from a file instead; - is stdin.")
    ] = None,
    as_chat: Annotated[
        bool, typer.Option("--chat", help="Ask the prompt as a message, through the model's chat template.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --chat: what the model is told before the message.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens to generate.")] = 64,
    opening: Opening,
    sampling: Sampling,
    n: Annotated[
        int, typer.Option("--n", "-N", min=1, help="Complete the prompt so many times, in different ways.")
    ] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=20, help="Show each token's log probability, and those of so many likeliest ones."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write what each unit does when, for ui.perfetto.dev or chrome://tracing, as JSON."
        ),
    ] = None,
    trace_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Trace so many of the steps that read the prompt, and as many that decode."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Complete a prompt, streaming the text; a line of figures follows on stderr.

    Where there is a GPU, the plan `default` is used, or one made for what is free of its memory. --vram bounds all that
    this process takes of the GPU, --ram what the model takes of host memory; a line says what was chosen.

    Of what is read from stdin or a file one line end at its end is dropped. With --chat the answer alone is printed.

    Example: hybrid run demo "def parse_args(" -n 64

    Example: hybrid run demo "def parse_args(" --vram 7MiB --second-device cpu

    Example: hybrid run demo "class " --temperature 0.8 --top-p 0.95 --n 3

    Example: hybrid run demo "version = " --regex '"[0-9]\\.[0-9]{1,2}"'

    Example: echo "def main(" | hybrid run demo - --json
    """
    if system is not None and not as_chat:
        raise UsageError("--system is told before a message: add --chat")
    text = read_prompt(prompt, prompt_file)
    with loading():
        from hybrid.chat_prompt import ChatFormat
        from hybrid.llm import LLM

    fixed: dict[str, Any] = {"max_tokens": max_tokens, "n": n, "logprobs": logprobs}
    params = sampling.params({}, **fixed)
    with contextlib.ExitStack() as stack:
        llm = stack.enter_context(opening.open(LLM, model, max_sequences=min(n, MOST_TOGETHER)))
        asked: str | Sequence[int] = text
        if as_chat:
            form = ChatFormat.of(llm.directory)
            if form.note is not None:
                display.note(f"warning: {form.note}")
            told = [] if system is None else [{"role": "system", "content": system}]
            asked = form.encode(llm.tokenizer, [*told, {"role": "user", "content": text}])
            params = sampling.params({}, form.stop, **fixed)
        traced = None if trace is None else stack.enter_context(llm.trace(trace, trace_steps))
        completions = _completed(llm, asked, params, as_json)
        figures, tokenizer = llm.summary(), llm.tokenizer
    if as_json:
        said = {"prompt": text, "chat": as_chat, "completions": completions, "summary": figures}
        display.write_json("hybrid.run/1", said)
        return
    for completion in completions:
        for line in reports.logprob_lines(completion.logprobs or (), tokenizer):
            display.note(line)
    first = completions[0].first_token_seconds
    assert first is not None, "nothing was cancelled"
    for line in reports.run_lines(figures, first):
        display.note(line)
    if trace is not None and traced is not None:
        display.note(reports.trace_line(traced, trace))


def _completed(llm: LLM, prompt: str | Sequence[int], params: SamplingParams, silent: bool) -> list[Completion]:
    """One text is shown as it comes, several when all are there; after the prompt, where that is a text."""
    show = (lambda text: None) if silent else display.write
    before = prompt if isinstance(prompt, str) else ""
    if params.n == 1:
        pieces = llm.stream(prompt, params)
        show(before)
        for piece in pieces:
            show(piece)
        show("\n")
        return [llm.last_completion]
    completions = llm.generate([prompt], params)
    for number, completion in enumerate(completions, 1):
        show(f"[{number} of {params.n}]\n{before}{completion.text}\n")
    return completions
