"""Groups of options that several commands have: a dataclass whose fields are options, taken as one parameter.

    @dataclass(frozen=True)
    class Opening:
        plan: PlanOption = None
        threads: ThreadsOption = None

    @with_groups
    def run(model: ModelArgument, opening: Opening, as_json: JsonOption = False) -> None: ...

is for typer a command with --plan, --threads and --json, in this order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of dataclass type are given to it made of options, one for each field."""
    signature = inspect.signature(command, eval_str=True)
    groups = {name: one.annotation for name, one in signature.parameters.items() if _is_group(one)}
    options: list[Parameter] = []
    for parameter in signature.parameters.values():
        options += _options(parameter.annotation) if parameter.name in groups else [parameter]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **made)

    by_keyword = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in options]
    called.__signature__ = signature.replace(parameters=by_keyword)  # type: ignore[attr-defined]
    called.__annotations__ = {option.name: option.annotation for option in options}
    del called.__wrapped__  # whose annotations are not these
    return called


def _is_group(parameter: Parameter) -> bool:
    return isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)


def _options(group: type) -> list[Parameter]:
    kinds = get_type_hints(group, include_extras=True)
    return [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=_default(f), annotation=kinds[f.name]) for f in fields(group)
    ]


def _default(field: Field[Any]) -> Any:
    return Parameter.empty if field.default is MISSING else field.default
