"""`hybrid run` on the command line."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display, reports
from hybrid.cli_opening import opened
from hybrid.cli_options import (
    ContextOption,
    DeviceOption,
    JsonOption,
    KvFormat,
    KvOption,
    ModelArgument,
    ModeOption,
    NoMmapOption,
    NoOverlapOption,
    PlanOption,
    ProfileOption,
    RamOption,
    SlowdownOption,
    ThreadsOption,
    ThresholdsOption,
    VramOption,
    loading,
)
from hybrid.cli_sampling import (
    FrequencyOption,
    MinPOption,
    PresenceOption,
    RegexOption,
    RepetitionOption,
    SchemaOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    chosen_grammar,
)

if TYPE_CHECKING:
    from hybrid.llm import LLM, Completion, SamplingParams

MOST_TOGETHER = 16  # texts of one prompt that are decoded together


def run(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to complete.", show_default=False)],
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens to generate.")] = 64,
    mode: ModeOption = None,
    profile: ProfileOption = "default",
    thresholds: ThresholdsOption = "default",
    plan: PlanOption = None,
    vram: VramOption = None,
    ram: RamOption = None,
    device: DeviceOption = None,
    slowdown: SlowdownOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    repetition: RepetitionOption = 1.0,
    presence: PresenceOption = 0.0,
    frequency: FrequencyOption = 0.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    schema: SchemaOption = None,
    regex: RegexOption = None,
    n: Annotated[
        int, typer.Option("--n", "-N", min=1, help="Complete the prompt so many times, in different ways.")
    ] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=20, help="Show each token's log probability, and those of so many likeliest ones."),
    ] = None,
    context: ContextOption = None,
    kv_format: KvOption = KvFormat.f16,
    threads: ThreadsOption = None,
    no_mmap: NoMmapOption = False,
    no_overlap: NoOverlapOption = False,
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

    Example: hybrid run demo "def parse_args(" -n 64

    Example: hybrid run demo "def parse_args(" --vram 7MiB --second-device cpu

    Example: hybrid run demo "class " --temperature 0.8 --top-p 0.95 --n 3

    Example: hybrid run demo "version = " --regex '"[0-9]\\.[0-9]{1,2}"'
    """
    with loading():
        from hybrid.llm import LLM, SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature or 0.0,
        top_p=1.0 if top_p is None else top_p,
        top_k=top_k or 0,
        min_p=min_p or 0.0,
        repetition_penalty=1.0 if repetition is None else repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        seed=seed,
        stop=tuple(stop or ()),
        n=n,
        logprobs=logprobs,
        grammar=chosen_grammar(schema, regex),
    )
    with contextlib.ExitStack() as stack:
        made = opened(
            LLM,
            model,
            mode=mode,
            plan=plan,
            vram=vram,
            ram=ram,
            device=device,
            slowdown=slowdown,
            context=context,
            kv_format=kv_format,
            threads=threads,
            no_mmap=no_mmap,
            no_overlap=no_overlap,
            profile=profile,
            thresholds=thresholds,
            max_sequences=min(n, MOST_TOGETHER),
        )
        llm = stack.enter_context(made)
        traced = None if trace is None else stack.enter_context(llm.trace(trace, trace_steps))
        completions = _completed(llm, prompt, params, as_json)
        figures, tokenizer = llm.summary(), llm.tokenizer
    if as_json:
        many = {"completions": [asdict(c) for c in completions]} if n > 1 else asdict(completions[0])
        display.write_json({"prompt": prompt, **many, "summary": asdict(figures)})
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


def _completed(llm: LLM, prompt: str, params: SamplingParams, silent: bool) -> list[Completion]:
    """One text is shown as it comes, several when all are there."""
    show = (lambda text: None) if silent else display.write
    if params.n == 1:
        pieces = llm.stream(prompt, params)
        show(prompt)
        for piece in pieces:
            show(piece)
        show("\n")
        return [llm.last_completion]
    completions = llm.generate(prompt, params)
    for number, completion in enumerate(completions, 1):
        show(f"[{number} of {params.n}]\n{prompt}{completion.text}\n")
    return completions
