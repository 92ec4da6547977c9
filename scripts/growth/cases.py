"""What is measured, and how: cases of a table in turn, for several rounds, as undisturbed as the machine allows."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from peers.floor import Bandwidth, floor_bytes
from peers.quiet import TOLERATED, ask_undisturbed

from growth.models import Models, predictors_name
from hybrid.model.pages import PAGE_TOKENS
from hybrid.stages.peers.protocol import Worker
from profiler.artifacts import UserError, format_size

SCRIPTS = Path(__file__).resolve().parent.parent
MODES = ("predicted", "exact", "dense")
PROMPT = 16  # tokens before those that are timed, where context is not the point
FIRST_ID = 300  # prompts are drawn from the ids from here on, after the opening one


@dataclass(frozen=True)
class Case:
    """One point of a table. context: tokens in the cache when timing begins; batch: sequences decoded together."""

    weight_format: str
    mode: str
    sparsity: float
    overshoot: float = 1.0
    context: int = PROMPT
    batch: int = 1

    @property
    def engine(self) -> str:
        """The cases of a table that have this in common share an opened engine."""
        return f"{self.weight_format} {self.mode} {self.sparsity} {self.overshoot}"


@dataclass(frozen=True)
class Settings:
    """rounds: of which medians are taken. tokens: decoded by each sequence in a round."""

    rounds: int
    tokens: int
    threads: int


@dataclass
class Measured:
    """A case's figures. speeds: tokens per second of all sequences together, one of each round.

    disturbance: processor seconds that others took, per second measured. active, read: shares of the rows, by token.
    """

    case: Case
    speeds: list[float] = field(default_factory=list)
    disturbance: list[float] = field(default_factory=list)
    active: float = 0.0
    read: float = 0.0

    def add(self, answer: dict[str, Any], tokens: int) -> None:
        """Take the answer of one round."""
        self.speeds.append(self.case.batch * tokens / sum(answer["seconds"]))
        self.disturbance.append(answer["disturbance"])
        self.active, self.read = answer["active"], answer["read"]

    def row(self, models: Models, settings: Settings, bandwidth: float) -> dict[str, Any]:
        """All that is said of the case. bandwidth: bytes per second."""
        case, speed = self.case, statistics.median(self.speeds)
        needed = step_bytes(models, case, self.active, settings.tokens)
        return {
            **asdict(case),
            "tokens_per_second": speed,
            "tokens_per_second_of_each_sequence": speed / case.batch,
            "bytes_per_step": needed,
            "gigabytes_per_second": speed / case.batch * needed / 1e9,
            "floor_share": speed / case.batch * needed / bandwidth,
            "active": self.active,
            "read": self.read,
            "rounds": self.speeds,
            "disturbance": statistics.median(self.disturbance),
        }


def step_bytes(models: Models, case: Case, active: float, tokens: int) -> float:
    """The least that a step has to read. Tokens of a batch share weights: of the rows, the union counts.

    active: measured share of the rows that fire. Rounded gates fire a little less or more often than planted: fewer
    rows lower the floor, more do not raise it.
    """
    weights = models.weights(case.sparsity)
    union = weights.union(case.batch) * min(1.0, active / weights.union(1))
    positions = case.batch * (case.context + (tokens + 1) / 2)
    return floor_bytes(models.directory(case.sparsity, case.weight_format), case.mode, union, positions)


def prompt(length: int, vocab: int, seed: int = 0) -> list[int]:
    """So many token ids, of which shorter prompts of the same seed are the beginning."""
    drawn = random.Random(seed)
    return [1, *(drawn.randrange(FIRST_ID, vocab) for _ in range(length - 1))]


def measure(
    cases: Sequence[Case], models: Models, settings: Settings, bandwidth: Bandwidth, tell: Callable[[str], None]
) -> tuple[list[Measured], str]:
    """The cases of a table in turn, and the instruction set of their engine; memory's bandwidth between rounds.

    Raises:
        UserError: the models do not fit in memory together, or the context is not one that the shape knows.
        WorkerError: an engine failed.
    """
    measured = [Measured(case) for case in cases]
    with Worker("growth.worker", folders=[SCRIPTS]) as worker:
        isa = _open(worker, cases, models, settings)
        for turn in range(-1, settings.rounds):
            bandwidth.measure()
            for case, figures in zip(cases, measured, strict=True):
                arguments = _decoding(case, models.shape.vocab, settings.tokens)
                if turn < 0:  # touches every page that the rounds will read
                    worker.ask("decode", **arguments)
                else:
                    figures.add(ask_undisturbed(worker, "decode", **arguments), settings.tokens)
            if turn >= 0:
                worst = max(figures.disturbance[-1] for figures in measured)
                warning = f", others took up to {worst:.0%} of a processor" if worst > TOLERATED else ""
                tell(f"  round {turn + 1} of {settings.rounds}{warning}")
    bandwidth.measure()
    return measured, isa


def _open(worker: Worker, cases: Sequence[Case], models: Models, settings: Settings) -> str:
    longest, most = max(case.context for case in cases), max(case.batch for case in cases)
    room = longest + settings.tokens + 1
    if most > 1:
        room += PROMPT * most  # the first decode while the last prompts are read
    isa, opened = "", set()
    paths = {case: models.directory(case.sparsity, case.weight_format, (1.0, case.overshoot)) for case in cases}
    size = sum(f.stat().st_size for path in set(paths.values()) for f in path.rglob("*") if f.is_file())
    if size > (free := psutil.virtual_memory().available):
        raise UserError(
            f"the models of one table take {format_size(size)}, and {format_size(free)} of memory are free: "
            "the disk would be measured; give fewer --layers or --sparsities"
        )
    for case, path in paths.items():
        if case.engine in opened:
            continue
        opened.add(case.engine)
        answer = worker.ask(
            "open",
            name=case.engine,
            path=str(path),
            mode=case.mode,
            predictors=predictors_name(case.overshoot),
            threads=settings.threads,
            context=-(-room // PAGE_TOKENS) * PAGE_TOKENS,
            sequences=most,
        )
        isa = answer["isa"]
    if longest > PROMPT:
        for path in set(paths.values()):
            names = list(dict.fromkeys(case.engine for case in cases if paths[case] == path))
            worker.ask("fill", names=names, ids=prompt(longest, models.shape.vocab))
    return isa


def _decoding(case: Case, vocab: int, tokens: int) -> dict[str, Any]:
    prompts = [prompt(case.context, vocab, seed) for seed in range(case.batch)]
    return {"name": case.engine, "prompts": prompts, "tokens": tokens, "filled": case.context > PROMPT}
