"""What commands have in common: the options that several take, and the words that they accept."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from hybrid import display
from hybrid.cli_completion import complete_added, complete_model
from hybrid.exits import explain_bus_errors, loading
from hybrid.names import DEMO, MANIFEST
from profiler.artifacts import UserError


class Mode(str, Enum):
    """What is computed for a token."""

    dense = "dense"
    exact = "exact"
    predicted = "predicted"
    threshold = "threshold"


class Device(str, Enum):
    """What a plan's GPU is on this machine."""

    cuda = "cuda"
    cpu = "cpu"


class WeightFormat(str, Enum):
    """How weights are stored."""

    auto = "auto"
    bf16 = "bf16"
    f16 = "f16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"


class KvFormat(str, Enum):
    """How keys and values are stored."""

    f16 = "f16"
    bf16 = "bf16"
    f32 = "f32"


def named_model(context: typer.Context, model: str | None) -> str | None:
    """The name of a model as it is, with a word where it may be mistaken: `demo` and `./demo` are two things."""
    if model == DEMO and not context.resilient_parsing and Path(DEMO, MANIFEST).exists():
        display.note("note: demo is the model that ships with hybrid; the folder of this name is ./demo")
    return model


MODEL_HELP = "A model directory, or `demo` for the shipped model; ./demo is a folder."
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="DIR", help=MODEL_HELP, show_default=False, callback=named_model, autocompletion=complete_model
    ),
]
SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A Hugging Face checkpoint folder, a GGUF file, or a name on the hub: org/name, org/name@revision, "
        "org/name/FILE.gguf.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    WeightFormat,
    typer.Option("--format", help="auto keeps the checkpoint's where it can; q8_0 takes 8.5 bits a weight, q4_0 4.5."),
]
ActivationOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="What the FFN of a GGUF file computes: relu, relu2, silu, drelu, fatrelu:THRESHOLD."
    ),
]
TokenizerOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Take the tokenizer files of another folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
PlanOption = Annotated[
    str | None,
    typer.Option(help="A plan of the directory by name, or a plan's path.", autocompletion=complete_added("plans")),
]
VramOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Take so much GPU memory, such as 8GiB, by a plan made for it; 0 takes none."),
]
RamOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Host memory for the model, such as 16GiB: what has no room there is read from the drive when needed.",
    ),
]
DeviceOption = Annotated[
    Device | None,
    typer.Option("--second-device", help="What a plan's GPU is here: `cuda`, or `cpu` for a stand-in made of memory."),
]
SlowdownOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slowdown",
        metavar="UNIT=RATIO",
        help="With the stand-in: have `gpu` or `cpu` take so many times as long for all that it computes, such as "
        "cpu=4, to imitate units of unequal speed; may be given once for each.",
    ),
]
ContextOption = Annotated[int | None, typer.Option(min=2, help="Tokens of one sequence, prompt and output.")]
KvOption = Annotated[KvFormat, typer.Option(help="How keys and values are stored.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; by default one for each performance core within affinity and CPU quota."),
]
NoMmapOption = Annotated[
    bool,
    typer.Option(
        "--no-mmap", help="Read the model into memory when it is opened, instead of using its files in place."
    ),
]
HeldOutOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        help="What quality is measured on, kept apart from what was profiled: a text file, a folder, or JSONL with "
        "`text` or `messages`; may be given several times. The demo has one.",
    ),
]
NoOverlapOption = Annotated[
    bool,
    typer.Option(
        "--no-overlap",
        help="Have the two units of a split layer compute one after the other: the same text, slower; shows what "
        "computing at the same time saves.",
    ),
]
TextOption = Annotated[list[Path], typer.Option("--text", help="A UTF-8 text file; may be given several times.")]

ModeOption = Annotated[
    Mode | None, typer.Option(help="By default the cheapest that the model offers; threshold is lossy.")
]
ProfileOption = Annotated[
    str, typer.Option(help="The profile whose predictors are used.", autocompletion=complete_added("profiles"))
]
ThresholdsOption = Annotated[
    str,
    typer.Option(
        help="The thresholds, by name, that mode threshold uses.", autocompletion=complete_added("thresholds")
    ),
]


def parse_slowdown(given: list[str] | None) -> dict[str, float]:
    """Ratios by unit, of the form that `--slowdown` takes; the engine says which make sense.

    Raises:
        UserError: one is not a name and a number, or a name comes twice.
    """
    found: dict[str, float] = {}
    for text in given or []:
        unit, _, ratio = text.partition("=")
        try:
            number = float(ratio)
        except ValueError:
            number = math.nan
        if unit in found or math.isnan(number):
            raise UserError(f"a slowdown is gpu=RATIO or cpu=RATIO, once for each, such as cpu=4; not {text!r}")
        found[unit] = number
    return found


def held_out(model: str, texts: list[Path] | None) -> list[Path]:
    """The texts given, or those that the demo keeps for this.

    Raises:
        UserError: none was given.
    """
    from hybrid.stages.shipped import HELDOUT_TEXT

    found = texts or ([HELDOUT_TEXT] if model == DEMO else [])
    if not found:
        raise UserError("quality is measured on a text: add --text FILE, with documents that were not profiled")
    return found


def model_directory(model: str) -> Path:
    """The model directory that is meant; `demo` is made on first use. Only that takes torch."""
    with loading():
        from hybrid.stages.finding import find_model

    explain_bus_errors()
    found = find_model(model)
    if found is None:
        with loading():
            from hybrid.stages.demo import demo_directory

        return demo_directory()
    return found


def device_name(device: Device | None) -> Literal["cpu", "cuda"] | None:
    """The device as the engine calls it."""
    if device is None:
        return None
    return "cuda" if device is Device.cuda else "cpu"
