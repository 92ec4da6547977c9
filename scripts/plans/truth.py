"""Two unequal units on this machine: plans for many budgets, their predicted times and those measured."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hybrid.runtime.engine import Engine
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.stages.hardware import HardwareSettings
from hybrid.stages.hardware import measure as measure_machine
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings, read_request
from hybrid.stages.plan_defaults import Given
from hybrid.store.files import ModelFiles
from placement.plan import Budgets, Objective, Plan
from placement.planner import make_plan
from profiler.hardware import Hardware

Cores = Mapping[str, tuple[int, ...]]
PROMPT = "The neurons that fire for this are few, and "


@dataclass(frozen=True)
class Scenario:
    """slowdown: how many times as long everything takes that a unit computes. objective: of the plans."""

    name: str
    slowdown: Mapping[str, float]
    objective: Objective


@dataclass(frozen=True)
class Measured:
    """A plan's predicted seconds for a token, the median of those measured, and the quartiles of these."""

    scenario: str
    vram: int
    rows_on_gpu: float
    attentions_on_gpu: int
    predicted: float
    measured: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted / self.measured - 1


def figures(scenario: Scenario, weight_format: str, cores: Cores, scale: float) -> Hardware:
    """This machine as `hybrid hardware` measures it, units slowed and pinned as the engine's will be."""
    with tempfile.TemporaryDirectory() as folder:
        settings = HardwareSettings(
            second_device="cpu",
            formats=(weight_format,),
            flash=False,
            output=Path(folder) / "machine.json",
            slowdown=scenario.slowdown,
            cores=cores,
            scale=scale,
        )
        return measure_machine(settings).hardware


def plans(model: Path, machine: Hardware, scenario: Scenario, shares: tuple[float, ...], tokens: int) -> Iterator[Plan]:
    """A plan for each share of the model's bytes as GPU memory, none of them written."""
    files = ModelFiles.open_files(model)
    size = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    context = len(PROMPT) + tokens + 1
    for share in shares:
        vram = int(size * share)
        settings = PlanSettings(vram=vram, context=context, objective=scenario.objective)
        request, digests = read_request(files, settings, Given(machine, vram, None, ()))
        yield make_plan(request, Budgets(vram, None, context), name="truth", digests=digests)


def measure(
    model: Path,
    plan: Plan,
    scenario: Scenario,
    cores: Cores,
    tokens: int,
    rounds: int,
) -> Measured:
    """Decode with a plan, each unit on cores of its own."""
    slowdown = scenario.slowdown
    with open_engine(model, plan=plan, device="cpu", context=plan.budgets.context, slowdown=slowdown, cores=cores) as e:
        decode(e, tokens)  # pages of the model are read in, caches and buffers are warm
        seconds = sorted(decode(e, tokens) for _ in range(rounds))
    quarter = len(seconds) // 4
    layers = plan.layers
    return Measured(
        scenario=scenario.name,
        vram=plan.budgets.vram,
        rows_on_gpu=plan.rows_on_gpu / plan.rows,
        attentions_on_gpu=sum(layer.attention == "gpu" for layer in layers),
        predicted=plan.expected.token_seconds,
        measured=statistics.median(seconds),
        low=seconds[quarter],
        high=seconds[-1 - quarter],
    )


def decode(engine: Engine, tokens: int) -> float:
    """Seconds of one decode step, on average over a short text."""
    before = (engine.ledger.decode.tokens, engine.ledger.decode.seconds)
    prompt = engine.tokenizer.encode(PROMPT)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    for _ in engine.run([Sequence(prompt, params, engine.tokenizer)]):
        pass
    after = engine.ledger.decode
    return (after.seconds - before[1]) / (after.tokens - before[0])


def table(results: list[Measured], size: Callable[[int], str]) -> list[str]:
    """Markdown."""
    lines = [
        "| units | GPU memory | rows there | attentions there | predicted, ms | measured, ms | off by |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in results:
        lines.append(
            f"| {one.scenario} | {size(one.vram)} | {one.rows_on_gpu:.0%} | {one.attentions_on_gpu} | "
            f"{one.predicted * 1e3:.1f} | {one.measured * 1e3:.1f} | {one.error:+.0%} |"
        )
    return lines
