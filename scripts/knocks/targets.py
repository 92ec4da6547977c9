"""What is damaged in a case and which commands then meet it. A case follows from the campaign's seed and its number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from knocks.bases import Bases
from knocks.folders import linked, odd, replaced
from knocks.gguf_file import damaged_gguf
from knocks.mutations import damaged_bytes, damaged_json, damaged_json_bytes, damaged_safetensors, json_bytes
from knocks.options import random_command
from knocks.requests import TOGETHER, send_requests
from knocks.templates import damaged_template
from knocks.tensors import damaged_torch
from profiler.artifacts import digest_json

# Where conversations depend on the file, which have a process of their own that takes as long as all the rest.
CHATTED = ("chat_template.jinja", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
CHATS = ("chat", "chat", "run")
Damage = Callable[[bytes, Random], bytes]
Commands = list[list[str]]


@dataclass
class Case:
    """Commands to run, one after the other, or other `work`. kept: folders in which nothing may change but what
    `written` names. count: damaged inputs in it.
    """

    commands: Commands
    kept: list[Path] = field(default_factory=list)
    written: tuple[str, ...] = ()
    stdin: Path | None = None
    work: Callable[[], None] | None = None
    count: int = 1


@dataclass(frozen=True)
class Target:
    """Files of one kind. share: of the campaign's cases, relative to the others."""

    name: str
    share: int
    make: Callable[[Path, Random, Bases], Case]


def _checkpoint(base: str, name: str, damage: Damage) -> Callable[[Path, Random, Bases], Case]:
    def make(folder: Path, rng: Random, bases: Bases) -> Case:
        source = linked(getattr(bases, base), folder / "source")
        path = source / name
        if not path.exists():
            replaced(path, b"{}")
        if not odd(path, rng):
            replaced(path, damage(path.read_bytes(), rng))
        commands = [["pack", str(source), str(folder / "out"), "--format", rng.choice(("auto", "f16", "q8_0", "q4_0"))]]
        commands.append(_use(folder / "out", rng, CHATS if name in CHATTED else ("run", "run", "verify")))
        return Case(commands, [source], stdin=_question(folder))

    return make


def _question(folder: Path) -> Path:
    path = folder / "question"
    path.write_text("def f(\n")
    return path


def _use(model: Path, rng: Random, kinds: Sequence[str]) -> list[str]:
    kind, at = rng.choice(kinds), str(model)
    few = ["-n", "2", "--threads", "1"]
    return {
        "run": ["run", at, "def f(<s></s> ä", *few],
        "planned": ["run", at, "def f(", *few, "--plan", "default", "--second-device", "cpu"],
        "threshold": ["run", at, "def f(", *few, "--mode", "threshold"],
        "chat": ["chat", at, *few],
        "verify": ["inspect", at, "--verify", "--json"],
        "inspect": ["inspect", at],
        "plan": ["plan", at, "--vram", "20000", "--name", "new", "--second-device", "cpu"],
        "explain": [
            "plan",
            at,
            "--vram",
            "20000",
            "--name",
            "new",
            "--explain",
            "--solver",
            rng.choice(("greedy", "highs")),
        ],
        "simulate": ["simulate", at, "--plan", "default", "--baselines", "--vram", "20000"],
        "report": ["report", at, "-o", str(model.parent / "page.html")],
        "merge": ["profile", "merge", at, "default", "default", "--name", "new"],
        "eval": [
            "eval",
            at,
            "--text",
            str(model.parent / "text.txt"),
            "--tokens",
            "40",
            "--name",
            "new",
            "--threads",
            "1",
        ],
    }[kind]


def _artifact(name: str, damage: Damage, uses: Sequence[str]) -> Callable[[Path, Random, Bases], Case]:
    def make(folder: Path, rng: Random, bases: Bases) -> Case:
        model = linked(bases.model, folder / "model")
        shutil.copy(bases.texts / "chats.jsonl", folder / "text.txt")
        path = model / name
        if not odd(path, rng):
            replaced(path, damage(path.read_bytes(), rng))
        command = _use(model, rng, uses)
        written = ("/new.", "thresholds/default.json") if command[0] == "eval" else ("/new.",)  # their loss is noted
        return Case([command], [model], written, _question(folder))

    return make


def _manifest(data: bytes, rng: Random) -> bytes:
    """Damaged, mostly with a digest that fits, so that what is said is what is checked."""
    if rng.random() < 0.2:
        return damaged_bytes(data, rng)
    value = damaged_json(json.loads(data), rng)
    if isinstance(value, dict) and rng.random() < 0.9:
        body = {k: v for k, v in value.items() if k not in ("kind", "format_version", "pack_digest")}
        try:
            value["pack_digest"] = digest_json(body)
        except (TypeError, ValueError, RecursionError):
            value["pack_digest"] = "0" * 64
    return json_bytes(value)


def _hardware(folder: Path, rng: Random, bases: Bases) -> Case:
    path = folder / "machine.json"
    path.write_bytes(damaged_json_bytes((bases.folder / "hardware.json").read_bytes(), rng))
    command = rng.choice((["plan", str(bases.model)], ["simulate", str(bases.model), "--baselines"]))
    if command[0] == "plan":
        command[1] = str(linked(bases.model, folder / "model"))
    return Case([[*command, "--hardware", str(path), "--vram", "20000"]], [bases.model])


def _published(folder: Path, rng: Random, bases: Bases) -> Case:
    source, model = linked(bases.published, folder / "published"), linked(bases.model, folder / "model")
    path = source / rng.choice(("model_0.pt", "model_1.pt", "activation_0.pt"))
    if not odd(path, rng):
        replaced(path, damaged_torch(path.read_bytes(), rng))
    more = rng.choice(([], ["--reorder"], ["--format", "q8_0"]))
    written = ("profiles/published.safetensors", "predictors/published.safetensors", "neurons/")
    return Case([["import-predictors", str(model), str(source), *more]], [source, model], written)


def _text(folder: Path, rng: Random, bases: Bases) -> Case:
    name = rng.choice(("documents.jsonl", "chats.jsonl", "text.txt"))
    path, model = folder / name, linked(bases.model, folder / "model")
    data = (bases.texts / name).read_bytes()
    if name.endswith("l") and rng.random() < 0.7:
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = damaged_json_bytes(lines[at], rng)
        path.write_bytes(b"\n".join(lines))
    else:
        path.write_bytes(damaged_bytes(data, rng))
    commands = (
        ["profile", str(model), "--text", str(path), "--no-predictors", "--name", "new"],
        [
            "eval",
            str(model),
            "--text",
            str(path),
            "--tokens",
            "60",
            "--name",
            "new",
            "--threads",
            "1",
            "--mode",
            "exact",
        ],
        ["calibrate", str(model), "--text", str(path), "--tokens", "100", "--name", "new", "--threads", "1"],
    )
    return Case([rng.choice(commands)], [model], ("/new.", "neurons/"))


def _options(folder: Path, rng: Random, bases: Bases) -> Case:
    model = linked(bases.model, folder / "model")
    (folder / "text.txt").write_text("def f():\n    return 1\n" * 40)
    return Case([random_command(rng, model, folder / "text.txt", bases)], stdin=_question(folder))


def _gguf(folder: Path, rng: Random, bases: Bases) -> Case:
    path = folder / "model.gguf"
    damaged_gguf(path, rng, bases)
    kinds = ("auto", "auto", "f16", "q8_0", "q4_0")
    pack = ["pack", str(path), str(folder / "out"), "--activation", "relu", "--format", rng.choice(kinds)]
    return Case([pack, _use(folder / "out", rng, ("run", "verify", "chat"))], stdin=_question(folder))


def _requests(folder: Path, rng: Random, bases: Bases) -> Case:
    return Case([], [bases.model], work=lambda: send_requests(bases.model, rng), count=TOGETHER)


JSON, TENSORS = damaged_json_bytes, damaged_safetensors
TARGETS = (
    Target("config.json", 10, _checkpoint("llama", "config.json", JSON)),
    Target("config.json (OPT)", 4, _checkpoint("opt", "config.json", JSON)),
    Target("checkpoint safetensors", 7, _checkpoint("llama", "model.safetensors", TENSORS)),
    Target("index of shards", 4, _checkpoint("sharded", "model.safetensors.index.json", JSON)),
    Target("shard", 2, _checkpoint("sharded", "model-1.safetensors", TENSORS)),
    Target("pytorch_model.bin", 7, _checkpoint("opt", "pytorch_model.bin", damaged_torch)),
    Target("tokenizer.json", 6, _checkpoint("sharded", "tokenizer.json", JSON)),
    Target("tokenizer.model", 6, _checkpoint("llama", "tokenizer.model", damaged_bytes)),
    Target("vocab.json", 3, _checkpoint("opt", "vocab.json", JSON)),
    Target("merges.txt", 3, _checkpoint("opt", "merges.txt", damaged_bytes)),
    Target("tokenizer_config.json", 4, _checkpoint("llama", "tokenizer_config.json", JSON)),
    Target("special_tokens_map.json", 2, _checkpoint("opt", "special_tokens_map.json", JSON)),
    Target("added_tokens.json", 2, _checkpoint("opt", "added_tokens.json", JSON)),
    Target("generation_config.json", 3, _checkpoint("llama", "generation_config.json", JSON)),
    Target("chat template", 3, _checkpoint("llama", "chat_template.jinja", damaged_template)),
    Target("manifest", 10, _artifact("model.json", _manifest, ("run", "verify", "inspect", "plan"))),
    Target("dense weights", 3, _artifact("dense.safetensors", TENSORS, ("run", "verify", "inspect", "planned"))),
    Target("neuron rows", 4, _artifact("neurons/01.safetensors", TENSORS, ("run", "verify", "plan", "planned"))),
    Target(
        "profile",
        7,
        _artifact("profiles/default.safetensors", TENSORS, ("plan", "explain", "simulate", "merge", "inspect")),
    ),
    Target(
        "predictors",
        7,
        _artifact("predictors/default.safetensors", TENSORS, ("run", "verify", "plan", "planned", "inspect")),
    ),
    Target("plan", 8, _artifact("plans/default.json", JSON, ("planned", "planned", "simulate", "inspect", "eval"))),
    Target(
        "thresholds", 5, _artifact("thresholds/default.json", JSON, ("threshold", "threshold", "inspect", "simulate"))
    ),
    Target(
        "evaluation",
        3,
        _artifact("evaluations/default.json", JSON, ("inspect", "inspect", "inspect", "inspect", "report")),
    ),
    Target("hardware", 6, _hardware),
    Target("published predictors", 4, _published),
    Target("GGUF", 12, _gguf),
    Target("texts", 6, _text),
    Target("options", 14, _options),
    Target("requests over HTTP", 5, _requests),
)


def by_name(name: str) -> Target:
    """A target."""
    return next(target for target in TARGETS if target.name == name)


def numbered(case: int) -> Target:
    """The target of a case: each has its share of any hundred or so cases in a row."""
    at = case % sum(target.share for target in TARGETS)
    for target in TARGETS:
        if at < target.share:
            return target
        at -= target.share
    raise AssertionError("shares add up")
