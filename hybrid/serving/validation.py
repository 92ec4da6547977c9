"""Requests that are not of the protocol: which field is wrong, and why, in one error object."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.serving.errors import ApiError, invalid

MOST_ERRORS = 100  # that are looked at; a body may have a hundred thousand
UNSUPPORTED = {
    "audio": "only text is generated",
    "best_of": "completions are not ranked; use n and choose",
    "function_call": "functions are not called: no model's format of calls is read",
    "functions": "functions are not called: no model's format of calls is read",
    "guided_json": "use response_format with a json_schema",
    "guided_regex": "use regex",
    "guided_grammar": "use grammar",
    "min_tokens": "use ignore_eos and max_tokens",
    "modalities": "only text is generated",
    "moderation": "nothing is moderated",
    "prediction": "no text is taken as a prediction",
    "reasoning_effort": "models have no setting for it here",
    "service_tier": "there is one tier: auto",
    "store": "answers are not stored",
    "suffix": "texts are continued, not filled in",
    "tool_choice": "tools are not called: no model's format of calls is read",
    "tools": "tools are not called: no model's format of calls is read; describe them in a message, and ask for "
    "JSON with response_format",
    "verbosity": "models have no setting for it here",
    "web_search_options": "nothing is searched",
}


def invalid_request(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """The error object for what pydantic found, naming the innermost field that is wrong."""
    if errors and errors[0]["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {errors[0]['ctx']['error']} at character {errors[0]['loc'][-1]}")
    if not isinstance(body, dict):
        return invalid("the body should be a JSON object, sent as Content-Type: application/json")
    found: dict[str, list[Mapping[str, Any]]] = {}
    for error in errors[:MOST_ERRORS]:
        found.setdefault(_path(error, body), []).append(error)
    path = max(found, key=lambda path: path.count(".") + path.count("["))  # of equals the first
    return _told(path, found[path])


def _told(path: str, errors: Sequence[Mapping[str, Any]]) -> ApiError:
    kinds = {error["type"] for error in errors}
    field = re.split(r"[.\[]", path)[0]
    if field in UNSUPPORTED:
        return invalid(f"{path} is not supported: {UNSUPPORTED[field]}", field, "unsupported_parameter")
    if kinds == {"extra_forbidden"}:
        return invalid(f"Unknown parameter: {path!r}", path, "unknown_parameter")
    if kinds == {"missing"}:
        return invalid(f"Missing required parameter: {path!r}", path, "missing_required_parameter")
    messages = list(dict.fromkeys(error["msg"] for error in errors))
    return invalid(f"Invalid {path!r}: {', or '.join(messages)}", path, "invalid_value")


def _path(error: Mapping[str, Any], body: Any) -> str:
    """`messages[0].content` of a location that names members of unions too, which are no fields."""
    path, value, places = "", body, list(error["loc"][1:])
    for at, place in enumerate(places):
        if isinstance(value, dict) and isinstance(place, str):
            last = at == len(places) - 1
            if place in value or (last and error["type"] == "missing"):
                path, value = f"{path}.{place}" if path else place, value.get(place)
        elif isinstance(value, list) and isinstance(place, int) and place < len(value):
            path, value = f"{path}[{place}]", value[place]
    if error["type"].startswith("union_tag"):  # the field that says which member is meant
        path += "." + error["ctx"]["discriminator"].strip("'")
    return path[:200]
