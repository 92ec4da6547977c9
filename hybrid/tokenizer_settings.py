"""What the JSON files beside a tokenizer say of it: which tokens open and end a text, which were added to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.artifacts import UserError, read_json_object

ID_LIMIT = 1 << 22  # more than any vocabulary has
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerSettings:
    """Read from the files, none of which has to be there.

    bos_token, eos_token: their names; bos_id, eos_ids: their ids as the model's configuration has them. add_bos:
    whether a text is opened by BOS; None where nothing says so. added: names and ids of tokens beyond the trained
    vocabulary; special: names of tokens that are no text; special_names: those that have a part to play, by that part
    (`bos_token` and so on), as chat templates ask for them.
    """

    bos_token: str | None
    eos_token: str | None
    bos_id: int | None
    eos_ids: frozenset[int]
    add_bos: bool | None
    add_prefix_space: bool
    added: dict[str, int]
    special: frozenset[str]
    special_names: dict[str, str]


def read_settings(directory: Path) -> TokenizerSettings:
    """The settings in a checkpoint, or in a model directory, where config.json is called source_config.json.

    Raises:
        UserError: one of the files is damaged.
    """
    config = read_optional(directory / "source_config.json") or read_optional(directory / "config.json")
    generation = read_optional(directory / "generation_config.json")
    own = read_optional(directory / "tokenizer_config.json")
    names = {**read_optional(directory / "special_tokens_map.json"), **{k: v for k, v in own.items() if v is not None}}
    added, special = _added_tokens(directory, own)
    parts = {key: name for key in SPECIAL_NAMES if (name := _name(names.get(key))) is not None}
    special |= set(parts.values())
    more = names.get("additional_special_tokens")
    special |= {name for m in (more if isinstance(more, list) else []) if (name := _name(m)) is not None}
    eos = generation.get("eos_token_id")
    eos = config.get("eos_token_id") if eos is None else eos
    add_bos, bos_token = own.get("add_bos_token"), _name(names.get("bos_token"))
    if config.get("model_type") == "opt":  # early copies do not say that `</s>` opens a text
        add_bos, bos_token = add_bos is not False, bos_token or "</s>"
    return TokenizerSettings(
        bos_token=bos_token,
        eos_token=_name(names.get("eos_token")),
        bos_id=next(iter(_ids(directory, config.get("bos_token_id"))), None),
        eos_ids=_ids(directory, eos),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        add_prefix_space=own.get("add_prefix_space") is True,
        added=added,
        special=frozenset(special),
        special_names=parts,
    )


def read_optional(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file; raises as `read_json_object`."""
    return read_json_object(path) if path.is_file() else {}


def _added_tokens(directory: Path, own: dict[str, Any]) -> tuple[dict[str, int], set[str]]:
    """Names and ids from added_tokens.json and from tokenizer_config.json, and the names that are marked special."""
    added: dict[str, int] = {}
    special: set[str] = set()
    for content, token_id in read_optional(directory / "added_tokens.json").items():
        added[content] = _id(directory, token_id)
    entries = own.get("added_tokens_decoder")
    for key, entry in (entries if isinstance(entries, dict) else {}).items():
        name = _name(entry)
        if name is None or not key.isdecimal():
            raise UserError(
                f"{directory / 'tokenizer_config.json'}: added token {key!r} is damaged; copy the file again"
            )
        added[name] = _id(directory, int(key))
        if isinstance(entry, dict) and entry.get("special") is True:
            special.add(name)
    if len(set(added.values())) != len(added) or "" in added:
        raise UserError(f"{directory}: added tokens share an id or have no name; copy tokenizer_config.json again")
    return added, special


def _name(token: object) -> str | None:
    """A token is written as its name, or as an object with the name in `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _ids(directory: Path, value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return frozenset(_id(directory, v) for v in values)


def _id(directory: Path, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < ID_LIMIT:
        raise UserError(f"{directory}: {value!r} is not a token id; copy the checkpoint's JSON files again")
    return value
