"""The command line: parses, imports the stage inside the command, calls it, prints.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 an error that the message explains, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hybrid import display, reports
from hybrid.cli_calibrate import calibrate
from hybrid.cli_compare import compare
from hybrid.cli_hardware import hardware
from hybrid.cli_import import import_predictors
from hybrid.cli_options import (
    PLACED_AT_ONCE,
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
    SlowdownOption,
    ThreadsOption,
    ThresholdsOption,
    VramOption,
    WeightFormat,
    device_name,
    loading,
    model_directory,
    parse_slowdown,
)
from hybrid.cli_plan import plan
from hybrid.cli_profile import profile_app
from hybrid.cli_quality import evaluate
from hybrid.cli_report import report
from hybrid.cli_serve import serve
from hybrid.cli_simulate import simulate
from profiler.artifacts import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Run language models larger than the GPU they run on.

    A model passes through four stages: pack a checkpoint, profile which neurons fire, plan where each one lives, run.
    Wherever a model directory is expected, `demo` stands for the model that ships with hybrid.
    """,
)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A Hugging Face checkpoint folder.")],
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="The model directory to make; must not exist.")],
    weight_format: Annotated[
        WeightFormat, typer.Option("--format", help="auto keeps a 16-bit type; q8_0 takes 8.5 bits a weight, q4_0 4.5.")
    ] = WeightFormat.auto,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a model directory.

    Example: hybrid pack ~/models/ReluLLaMA-7B relu7b --format q8_0
    """
    from hybrid.stages.pack import pack as run_stage

    with display.progress("packing") as tell:
        report = run_stage(source, destination, weight_format.value, tell)
    display.show(as_json, report, lambda: reports.pack_lines(report))


app.add_typer(profile_app, name="profile")


app.command()(calibrate)
app.command("import-predictors")(import_predictors)
app.command()(hardware)


app.command()(plan)


@app.command()
def run(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to complete.", show_default=False)],
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens to generate.")] = 64,
    mode: ModeOption = None,
    profile: ProfileOption = "default",
    thresholds: ThresholdsOption = "default",
    plan: PlanOption = None,
    vram: VramOption = None,
    device: DeviceOption = None,
    slowdown: SlowdownOption = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that hold this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from so many likeliest tokens; 0 for all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text; may be given several times.")] = None,
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

    Where there is a GPU, the plan `default` is used, or one is made for what is free of its memory. --vram makes one
    for a budget, which bounds all that this process takes of the GPU; --vram 0 leaves the GPU alone.

    Example: hybrid run demo "def parse_args(" -n 64

    Example: hybrid run demo "def parse_args(" --vram 7MiB --second-device cpu
    """
    with loading():
        from hybrid.llm import LLM, SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=tuple(stop or ()),
    )
    chosen = None if mode is None else mode.value
    with contextlib.ExitStack() as stack:
        with display.long_progress("placing on the gpu", PLACED_AT_ONCE) as tell:
            opened = LLM(
                model,
                mode=chosen,
                plan=plan,
                vram=vram,
                device=device_name(device),
                context=context,
                max_sequences=1,
                kv_format=kv_format.value,
                threads=threads,
                mmap=not no_mmap,
                profile=profile,
                thresholds=thresholds,
                slowdown=parse_slowdown(slowdown),
                overlap=not no_overlap,
                note=lambda line: display.note(f"warning: {line}"),
                tell=tell,
            )
        llm = stack.enter_context(opened)
        traced = None if trace is None else stack.enter_context(llm.trace(trace, trace_steps))
        show = (lambda text: None) if as_json else display.write
        pieces = llm.stream(prompt, params)
        show(prompt)
        for piece in pieces:
            show(piece)
        figures, completion = llm.summary(), llm.last_completion
    if as_json:
        display.write_json({"prompt": prompt, **asdict(completion), "summary": asdict(figures)})
        return
    display.write("\n")
    for line in reports.run_lines(figures, completion.first_token_seconds):
        display.note(line)
    if trace is not None and traced is not None:
        display.note(reports.trace_line(traced, trace))


app.command()(serve)
app.command()(compare)
app.command("eval")(evaluate)
app.command()(report)
app.command()(simulate)


@app.command()
def inspect(
    model: ModelArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and check that it is whole.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a model directory holds; with --verify, whether it is intact.

    Example: hybrid inspect demo --verify
    """
    from hybrid.stages.inspect import inspect as run_stage

    with display.progress("verifying") as tell:
        report = run_stage(model_directory(model), verify, tell)
    display.show(as_json, report, lambda: reports.inspect_lines(report))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A mistake of the user's ends in one line and an exit code, never in a traceback; so does an interrupt."""
    try:
        yield
    except KeyboardInterrupt:  # commands turn one into an exit themselves; before and after them it comes here
        sys.exit(130)
    except UserError as error:
        display.note(f"hybrid: {error}")
        sys.exit(1)
    except MemoryError:
        display.note("hybrid: out of memory; close something, or use a smaller --context")
        sys.exit(1)


def main() -> None:
    """The `hybrid` command."""
    with user_errors():
        app(standalone_mode=True)


if __name__ == "__main__":
    main()
