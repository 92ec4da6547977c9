"""`hybrid chat` on the command line."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from hybrid import display
from hybrid.cli_opening import opened
from hybrid.cli_options import (
    ContextOption,
    DeviceOption,
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

UNBOUNDED = 1 << 30  # tokens of an answer: what the context leaves room for
LEAST_TOP_P = 1e-9  # what files mean that recommend 0


def chat(
    model: ModelArgument,
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", "-n", min=1, help="Tokens of an answer at most; by default what the context holds."
        ),
    ] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    repetition: RepetitionOption = None,
    presence: PresenceOption = 0.0,
    frequency: FrequencyOption = 0.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    schema: SchemaOption = None,
    regex: RegexOption = None,
    mode: ModeOption = None,
    profile: ProfileOption = "default",
    thresholds: ThresholdsOption = "default",
    plan: PlanOption = None,
    vram: VramOption = None,
    ram: RamOption = None,
    device: DeviceOption = None,
    slowdown: SlowdownOption = None,
    context: ContextOption = None,
    kv_format: KvOption = KvFormat.f16,
    threads: ThreadsOption = None,
    no_mmap: NoMmapOption = False,
    no_overlap: NoOverlapOption = False,
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
    grammar = chosen_grammar(schema, regex)
    with loading():
        from hybrid.chat_prompt import ChatFormat
        from hybrid.chat_session import ChatSession
        from hybrid.chat_terminal import answer_lines, converse
        from hybrid.llm import LLM, SamplingParams
        from hybrid.recommended import sampling_defaults

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
            max_sequences=1,
        )
        llm = stack.enter_context(made)
        given = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition,
        }
        drawn = sampling_defaults(llm.directory) | {name: value for name, value in given.items() if value is not None}
        if top_p is None:
            drawn["top_p"] = max(drawn["top_p"], LEAST_TOP_P)
        params = SamplingParams(
            max_tokens=max_tokens or UNBOUNDED,
            **drawn,
            presence_penalty=presence,
            frequency_penalty=frequency,
            seed=seed,
            stop=tuple(stop or ()),
            grammar=grammar,
        )
        form = ChatFormat.of(llm.directory)
        if form.note is not None:
            display.note(f"warning: {form.note}")
        session = ChatSession(llm, form, params, system)
        if sys.stdin.isatty():
            converse(session, as_json)
        else:
            answer_lines(session, sys.stdin.buffer, as_json)
