"""Commands with options at random, from the command line's own declarations: right, wrong, huge, empty, odd."""

from __future__ import annotations

import enum
import functools
from pathlib import Path
from random import Random
from typing import Any

from knocks.bases import Bases

# Those that take minutes, or never end, when their options happen to be right, are given options that are wrong.
ENDLESS = ("serve", "hardware", "compare")
WORDS = (
    "",
    " ",
    "0",
    "1",
    "-1",
    "2",
    "7",
    "64",
    "4096",
    "1e3",
    "nan",
    "inf",
    "1e400",
    "99999999999999999999",
    "demo2",
    "x",
)
WORDS += (
    "../x",
    "/dev/null",
    "/",
    ".",
    "default",
    "none",
    "auto",
    "8GiB",
    "20000",
    "5%",
    "-5%",
    "1TiB",
    "gpu=2",
    "cpu=0",
)
WORDS += (
    "gpu=nan",
    "cpu",
    "ä😀",
    "a\nb",
    "%s",
    "a" * 300,
    "--",
    "-",
    "q4_0",
    "exact",
    "predicted",
    "threshold",
    "cuda",
    "null",
)
WORDS += ("[0-9]+", "(((", "{}", '{"type": "object"}', "NaN", "1_000", "0x10", "1.5", "100k", "2M", "f16,bf16", ",")


@functools.cache
def commands() -> dict[str, Any]:
    """All commands by their words, such as `profile merge`."""
    from hybrid.cli import COMMANDS, loaded

    found: dict[str, Any] = {}
    for name in COMMANDS:
        command = loaded(name)
        if hasattr(command, "commands"):
            found |= {f"{name} {child}": inner for child, inner in command.commands.items()}
        else:
            found[name] = command
    return found


def random_command(rng: Random, model: Path, text: Path, bases: Bases) -> list[str]:
    """One command: its arguments mostly such that it can work, and up to four options with any value."""
    known = commands()
    name = rng.choice(sorted(known))
    command = known[name]
    line = name.split()
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            line.append(_argument(rng, name, parameter, model, text, bases))
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    names = {option.name for option in options}
    if name in ENDLESS:
        line += ["--threads", rng.choice(("0", "-1", "x"))] if "threads" in names else ["--nothing"]
    for option in rng.sample(options, min(len(options), rng.choice((0, 1, 1, 2, 4)))):
        line += _option(rng, option, model, text)
    if "text" in names and "--text" not in line and name not in ENDLESS and rng.random() < 0.9:
        line += ["--text", str(text)]
    if "output" in names and "--output" not in line and rng.random() < 0.9:
        line += ["--output", str(model.parent / "made")]
    line += {
        "chat": ["-n", "2"],
        "run": ["-n", "2"],
        "prepare": ["--no-predictors", "--tokens", "2k"],
        "doctor": ["--no-drive"],
    }.get(name, [])
    return [word.replace("\0", "") for word in line]


def _argument(rng: Random, name: str, parameter: Any, model: Path, text: Path, bases: Bases) -> str:
    if rng.random() < 0.15:
        return rng.choice(WORDS)
    if parameter.name in ("model", "directory"):
        return str(model)
    return {
        "source": str(rng.choice((bases.llama, bases.opt, model))),
        "destination": str(model.parent / "made"),
        "folder": str(bases.published),
        "prompt": "def f(",
        "names": "default",
    }.get(str(parameter.name), str(text))


def _option(rng: Random, option: Any, model: Path, text: Path) -> list[str]:
    flag = rng.choice(option.opts)
    if option.is_flag:
        return [flag]
    asked = option.type_descriptor.annotation
    if isinstance(asked, type) and issubclass(asked, enum.Enum) and rng.random() < 0.7:
        return [flag, str(rng.choice(list(asked)).value)]
    right = {"name": "new", "profile": "default", "plan": "default", "thresholds": "default", "text": str(text)}
    if option.name in right and rng.random() < 0.5:
        return [flag, right[option.name]]
    if option.name in ("output", "trace", "png"):
        return [flag, str(rng.choice((model.parent / "made", model, Path("/dev/full"), model / "no" / "where")))]
    return [flag, rng.choice(WORDS)]
