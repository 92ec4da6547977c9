"""Options that say how a text is sampled, which `run` and `chat` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.artifacts import UserError

if TYPE_CHECKING:
    from hybrid.runtime.grammar import Grammar

TemperatureOption = Annotated[
    float | None, typer.Option(min=0.0, help="0 takes the likeliest token, 1 samples as the model has learned.")
]
TopPOption = Annotated[
    float | None, typer.Option(help="Sample from the fewest likeliest tokens that hold this probability.")
]
TopKOption = Annotated[int | None, typer.Option(min=0, help="Sample from so many likeliest tokens; 0 for all.")]
MinPOption = Annotated[
    float | None, typer.Option(help="Sample from tokens at least so many times as likely as the likeliest, as 0.05.")
]
RepetitionOption = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        help="Make tokens of the prompt and the output less likely: above 1, mostly up to 1.3.",
    ),
]
PresenceOption = Annotated[
    float, typer.Option("--presence-penalty", help="Lower the logit of tokens that the output has by so much, -2 to 2.")
]
FrequencyOption = Annotated[
    float, typer.Option("--frequency-penalty", help="The same, for each time that the output has it; -2 to 2.")
]
SeedOption = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
StopOption = Annotated[list[str] | None, typer.Option(help="End at this text; may be given several times.")]
SchemaOption = Annotated[
    Path | None, typer.Option("--json-schema", metavar="FILE", help="Write JSON that meets the JSON schema in a file.")
]
RegexOption = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Write a text that the regular expression matches as a whole.")
]


def chosen_grammar(schema: Path | None, regex: str | None) -> Grammar | None:
    """What `--json-schema` or `--regex` asks for.

    Raises:
        UserError: both were given, or the file cannot be read.
    """
    if schema is None and regex is None:
        return None
    from hybrid.runtime.grammar import TEXT_LIMIT, Grammar

    if regex is not None:
        if schema is not None:
            raise UserError("--json-schema and --regex both say what the text must be; give one of them")
        return Grammar("regex", regex)
    assert schema is not None
    try:
        with schema.open("rb") as file:
            data = file.read(4 * TEXT_LIMIT + 1)  # more bytes than so many characters have
        return Grammar("json_schema", data.decode())
    except OSError as error:
        raise UserError(f"cannot read {schema}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{schema} is not UTF-8 text, or too long for a schema") from error
