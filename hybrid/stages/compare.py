"""The engine against layer-wise offload: the same prompts and text over several placements and modes, in one run.

Rounds are interleaved, so that a machine which slows down slows all of them; the ratio is the median over rounds.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from hybrid.runtime.engine import Engine
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.runtime.summary import summarise
from hybrid.stages.finding import find_plan, offered_modes
from hybrid.stages.opening import open_engine, resolve
from hybrid.stages.plan import baseline_plan
from hybrid.stages.quality import evaluate, read_passages
from hybrid.stages.texts import Corpus
from hybrid.store.directory import ModelDirectory
from placement.plan import Mode, Plan
from profiler.artifacts import UserError
from profiler.quality import Quality

PROMPT_TOKENS = 16
LOSSY = {"threshold": "threshold, lossy"}


@dataclass(frozen=True)
class Settings:
    """What is compared: decode `tokens` after each of `prompts` prompts taken from the text, `rounds` times.

    plan: the hybrid placement; None keeps everything on the CPU, and the baseline there too. text_tokens: how much of
    the text the quality is measured on; None for all of it. slowdown, overlap: of `EngineOptions`.
    """

    plan: str | None = None
    device: Literal["cpu", "cuda"] | None = None
    tokens: int = 48
    prompts: int = 4
    rounds: int = 3
    text_tokens: int | None = None
    context: int | None = None
    kv_format: str = "f16"
    threads: int | None = None
    mmap: bool = True
    slowdown: Mapping[str, float] = field(default_factory=dict)
    overlap: bool = True


@dataclass(frozen=True)
class Row:
    """One engine: tokens/s is the median over rounds, `ratio` the median of its rounds' ratios over the first row."""

    name: str
    mode: str
    tokens_per_second: float
    ratio: float
    bytes_per_token: float
    rows_per_token: dict[str, float]
    quality: Quality


@dataclass(frozen=True)
class Comparison:
    """The rows, first the layer-wise baseline, and what they were measured on."""

    model: str
    rows: list[Row]
    decoded_tokens: int
    text: list[str]


def compare(
    path: str | Path, texts: Sequence[Path], settings: Settings, progress: Callable[[str, int, int], None] | None = None
) -> Comparison:
    """Measure the baseline, exact and, where the model is profiled or calibrated, predicted and threshold mode."""
    tell = progress or (lambda stage, done, total: None)
    model = resolve(path)
    with contextlib.ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name, mode, placement in _contenders(model, settings):
            beside = next(iter(engines.values()), None)
            engines[name] = stack.enter_context(_open(model, mode, placement, settings, beside))
        first = next(iter(engines.values()))
        passages, _ = read_passages(Corpus.open(texts, first.tokenizer, model), first.context, settings.text_tokens)
        opened = (list(passage.ids[:PROMPT_TOKENS]) for passage in passages if len(passage.ids) > PROMPT_TOKENS)
        prompts = list(islice(opened, settings.prompts))
        if not prompts:
            raise UserError("the text is too short to take prompts from: give one of at least a hundred words")
        speeds: dict[str, list[float]] = {name: [] for name in engines}
        for done in range(settings.rounds):
            for name, engine in engines.items():
                speeds[name].append(_decode(engine, prompts, settings.tokens))
            tell("decoding", done + 1, settings.rounds)
        qualities = evaluate(list(engines.values()), passages, lambda done, total: tell("quality", done, total))
        base = next(iter(speeds.values()))
        rows = [
            _row(name, engine, speeds[name], base, quality)
            for (name, engine), quality in zip(engines.items(), qualities, strict=True)
        ]
        decoded = first.ledger.decode.tokens
    return Comparison(str(path), rows, decoded, [str(text) for text in texts])


def _contenders(model: Path, settings: Settings) -> list[tuple[str, Mode, Plan | None]]:
    """Name, mode and placement of what is compared, the baseline first."""
    with ModelDirectory.open(model) as directory:
        plan = find_plan(directory, settings.plan)
        baseline = None if plan is None else baseline_plan(directory, plan, settings.kv_format)
        modes = offered_modes(directory)[1:]
    name = "dense, on the CPU" if baseline is None else f"dense, {baseline.name}"
    return [(name, "dense", baseline), *((LOSSY.get(mode, str(mode)), mode, plan) for mode in modes)]


def _open(model: Path, mode: Mode, placement: Plan | None, settings: Settings, beside: Engine | None) -> Engine:
    return open_engine(
        model,
        mode=mode,
        plan=placement,
        device=settings.device,
        context=settings.context,
        kv_format=settings.kv_format,
        threads=settings.threads,
        mmap=settings.mmap,
        slowdown=settings.slowdown,
        overlap=settings.overlap,
        beside=beside,
    )


def _decode(engine: Engine, prompts: Sequence[list[int]], tokens: int) -> float:
    """Tokens per second of decoding after the prompts, one sequence at a time."""
    before = (engine.ledger.decode.tokens, engine.ledger.decode.seconds)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    for prompt in prompts:
        for _ in engine.run([TokenSequence(list(prompt), params, engine.tokenizer)]):
            pass
    after = engine.ledger.decode
    return (after.tokens - before[0]) / (after.seconds - before[1])


def _row(name: str, engine: Engine, speeds: list[float], base: list[float], quality: Quality) -> Row:
    summary = summarise(engine)
    ratios = [speed / first for speed, first in zip(speeds, base, strict=True)]
    return Row(
        name=name,
        mode=engine.options.mode,
        tokens_per_second=statistics.median(speeds),
        ratio=statistics.median(ratios),
        bytes_per_token=summary.bytes_per_token,
        rows_per_token=summary.rows_per_token,
        quality=quality,
    )
