"""`hybrid compare` on the command line, and a comparison as people read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display
from hybrid.cli_options import (
    ContextOption,
    DeviceOption,
    HeldOutOption,
    JsonOption,
    KvFormat,
    KvOption,
    ModelArgument,
    NoMmapOption,
    NoOverlapOption,
    PlanOption,
    SlowdownOption,
    ThreadsOption,
    device_name,
    held_out,
    parse_slowdown,
)
from hybrid.exits import loading
from hybrid.reports import table
from profiler.artifacts import format_size, parse_size

if TYPE_CHECKING:
    from hybrid.stages.compare_results import Comparison, Row

NOT_MEASURED = "not measured"


def compare(
    model: ModelArgument,
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="GPU memory that each contender may take, such as 8GiB; plans are made for it."
        ),
    ] = None,
    text: HeldOutOption = None,
    plan: PlanOption = None,
    device: DeviceOption = None,
    slowdown: SlowdownOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The checkpoint that the model was packed from: compare with transformers."),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same model for llama.cpp, in the same bits: compare with it."),
    ] = None,
    peer_python: Annotated[
        str | None,
        typer.Option(metavar="PYTHON", help="An interpreter that has llama_cpp, or accelerate; by default this one."),
    ] = None,
    tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=2, help="Tokens to decode after each prompt.")] = 48,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts, taken from the text.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each prompt.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds of timing.")] = 3,
    text_tokens: Annotated[int, typer.Option(min=2, help="Measure perplexity on so many tokens.")] = 4096,
    context: ContextOption = None,
    kv_format: KvOption = KvFormat.f16,
    threads: ThreadsOption = None,
    no_mmap: NoMmapOption = False,
    no_overlap: NoOverlapOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the figures; needs matplotlib.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this engine beside layer-wise offload within one budget of GPU memory, in one run.

    Against each other: this engine in the modes that skip rows, on plans for the budget (or on --plan); its own
    layer-wise plans, which skip nothing (the first k layers on the GPU; attention there and the FFN on the CPU; all on
    the CPU); transformers with accelerate's device_map, given --checkpoint; llama.cpp with as many layers on the GPU as
    fit, and with the FFN on the CPU, given --gguf. Each runs in a process of its own, on the same prompts and threads,
    greedily, in turn for several rounds. A ratio is over the fastest layer-wise form of this run, whoever's it is.

    Without a GPU, --second-device cpu lets a part of memory stand in for one; other programs then compute on the CPU
    alone. Without --vram and --plan there is one unit, and everything on the CPU is what is compared with. Other
    programs are optional packages: those missing are named with the command that installs them.

    Example: hybrid compare demo

    Example: hybrid compare relu7b --vram 8GiB --text heldout/ --checkpoint ~/models/ReluLLaMA-7B --plot compare.png
    """
    with loading():
        from hybrid.stages.compare import compare as run_stage
        from hybrid.stages.compare_contenders import Settings

    texts = held_out(model, text)
    settings = Settings(
        vram=None if vram is None else parse_size(vram),
        plan=plan or ("default" if device and vram is None else None),
        device=device_name(device),
        tokens=tokens,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        rounds=rounds,
        text_tokens=text_tokens,
        context=context,
        kv_format=kv_format.value,
        threads=threads,
        mmap=not no_mmap,
        slowdown=parse_slowdown(slowdown),
        overlap=not no_overlap,
        checkpoint=checkpoint,
        gguf=gguf,
        python=peer_python,
    )
    with display.stages() as tell:
        result = run_stage(model, texts, settings, tell, plot)
    display.show(as_json, "hybrid.compare/1", result, lambda: comparison_lines(result))


def comparison_lines(result: Comparison) -> list[str]:
    """The table, the headline, how it was measured, and what was not."""
    ours = [row.bytes_per_token is not None for row in result.rows]
    header = ["", "tokens/s", "over the best layer-wise", "first token", "GPU", "RAM", "touched/token", "rows/token"]
    rows = [_cells(row) for row in result.rows]
    header += ["perplexity", "top-1 as dense"]
    if result.budget is None:
        header, rows = _without(header.index("GPU"), header, rows)
    if not any(ours):
        header, rows = _without(header.index("touched/token"), header, rows)
    lines = [*table(header, rows), ""]
    if result.headline is not None:
        lines.append(f"{result.headline.sentence}")
    lines.append(_method(result))
    lines += [f"{NOT_MEASURED}: {row.name}: {row.reason}" for row in result.rows if row.reason is not None]
    lines += [f"no perplexity of {row.name}: {row.unscored}" for row in result.rows if row.unscored is not None]
    return [*lines, *(f"note: {note}" for note in result.notes)]


def _cells(row: Row) -> list[str]:
    if row.reason is not None or row.tokens_per_second is None or row.first_token_seconds is None:
        return [row.name, NOT_MEASURED, *["-"] * 8]
    by_unit = row.rows_per_token or {}
    return [
        row.name,
        f"{row.tokens_per_second:.1f}",
        "-" if row.ratio is None else f"{row.ratio:.2f}x",
        f"{row.first_token_seconds * 1e3:.0f} ms",
        "-" if row.vram is None else format_size(row.vram),
        "-" if row.ram is None else format_size(row.ram),
        "-" if row.bytes_per_token is None else format_size(row.bytes_per_token),
        " + ".join(f"{count:,.0f} {unit}" for unit, count in by_unit.items()) or "-",
        "-" if row.perplexity is None else f"{row.perplexity:.4f}",
        "-" if row.agreement is None else f"{row.agreement:.2%}",
    ]


def _without(column: int, header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    header, *rows = [[*cells[:column], *cells[column + 1 :]] for cells in (header, *rows)]
    return header, rows


def _method(result: Comparison) -> str:
    """How the figures came about, in one line."""
    rounds = max((len(row.rounds) for row in result.rows), default=0)
    threads = f"{result.threads} thread{'s' * (result.threads != 1)}"
    device = ""
    if result.budget is not None:
        unit = "a stand-in for a GPU" if result.device == "cpu" else "a GPU"
        device = f" and {format_size(result.budget)} of {unit}"
    prompts = f"{result.prompts} prompt{'s' * (result.prompts != 1)} of {result.prompt_tokens} tokens"
    return (
        f"medians of {rounds} interleaved rounds: {prompts}, {result.tokens} decoded after each, with {threads} of the "
        f"CPU{device}; RAM: the most that a process had, mapped files included; perplexity on {result.scored_tokens:,} "
        f"tokens of {', '.join(result.text)}"
    )
