"""Options that say how a text is sampled, which `run` and `chat` have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid.exits import UsageError
from profiler.artifacts import UserError

if TYPE_CHECKING:
    from hybrid.runtime.grammar import Grammar
    from hybrid.runtime.sampling_params import SamplingParams

TemperatureOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="0 takes the likeliest token, 1 samples as the model has learned. By default `run` takes the likeliest, "
        "and `chat` what the model's makers recommend, else 1.",
    ),
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


@dataclass(frozen=True)
class Sampling:
    """What `run` and `chat` can be told about how the next token is chosen."""

    temperature: TemperatureOption = None
    top_p: TopPOption = None
    top_k: TopKOption = None
    min_p: MinPOption = None
    repetition: RepetitionOption = None
    presence: PresenceOption = 0.0
    frequency: FrequencyOption = 0.0
    seed: SeedOption = None
    stop: StopOption = None
    schema: SchemaOption = None
    regex: RegexOption = None

    def params(self, otherwise: Mapping[str, Any], stop: Sequence[str] = (), **others: Any) -> SamplingParams:
        """What a text is continued by.

        Args:
            otherwise: fields that hold where the user named none.
            stop: more strings that end it.
            others: fields that these options do not have.

        Raises:
            UserError: one of them makes no sense.
        """
        from hybrid.runtime.sampling_params import SamplingParams

        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition,
        }
        drawn = {**otherwise, **{name: value for name, value in given.items() if value is not None}}
        return SamplingParams(
            **drawn,
            presence_penalty=self.presence,
            frequency_penalty=self.frequency,
            seed=self.seed,
            stop=(*(self.stop or ()), *stop),
            grammar=chosen_grammar(self.schema, self.regex),
            **others,
        )


def chosen_grammar(schema: Path | None, regex: str | None) -> Grammar | None:
    """What `--json-schema` or `--regex` asks for.

    Raises:
        UsageError: both were given.
        UserError: the file cannot be read.
    """
    if schema is None and regex is None:
        return None
    from hybrid.runtime.grammar import TEXT_LIMIT, Grammar

    if regex is not None:
        if schema is not None:
            raise UsageError("--json-schema and --regex both say what the text must be; give one of them")
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
