"""What a placement should give on any machine: seconds of a step, of a prompt, and of a request.

Nothing is run: figures from here are predicted, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.latency import token_seconds
from placement.plan import MOST_BATCH, MOST_CONTEXT, Expected, Placement, check_whole
from profiler.artifacts import UserError
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit

CHUNK = 512  # tokens of a prompt that one step takes


@dataclass(frozen=True)
class Workload:
    """What is asked of a model: `batch` sequences at once, each of `prompt` tokens and then `output` more."""

    prompt: int
    output: int
    batch: int = 1

    def __post_init__(self) -> None:
        check_whole("the tokens of a prompt", self.prompt, 0, MOST_CONTEXT // 2)
        check_whole("the tokens to generate", self.output, 1, MOST_CONTEXT // 2)
        check_whole("batch", self.batch, 1, MOST_BATCH)


@dataclass(frozen=True)
class Simulated:
    """A request, predicted.

    step: one decode step, each sequence halfway through its output. prompt_seconds: until the first token.
    """

    workload: Workload
    step: Expected
    prompt_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens that all sequences together get per second, once their prompts are read."""
        return self.workload.batch / self.step.token_seconds

    @property
    def seconds(self) -> float:
        """Seconds of the whole request."""
        return self.prompt_seconds + self.workload.output * self.step.token_seconds

    @property
    def end_to_end(self) -> float:
        """Tokens generated per second of the whole request, reading the prompts included."""
        return self.workload.output * self.workload.batch / self.seconds


def simulate(
    sizes: ModelSizes,
    frequencies: Frequencies | None,
    hardware: Hardware,
    placement: Placement,
    workload: Workload,
    *,
    for_prompts: tuple[ModelSizes, Placement] | None = None,
) -> Simulated:
    """A request on a machine. frequencies may be None in mode dense alone.

    for_prompts: the placement by which prompts are read, where it is another than the one that decodes.

    Raises:
        UserError: rows on flash without figures for it, or frequencies that are not of this model.
    """
    context = workload.prompt + workload.output // 2 + 1
    step = step_seconds(sizes, frequencies, hardware, placement, batch=workload.batch, context=context)
    prompt_sizes, prompt_placement = for_prompts or (sizes, placement)
    seconds = workload.batch * prompt_seconds(prompt_sizes, frequencies, hardware, prompt_placement, workload.prompt)
    return Simulated(workload, step, seconds)


def step_seconds(
    sizes: ModelSizes,
    frequencies: Frequencies | None,
    hardware: Hardware,
    placement: Placement,
    *,
    batch: int,
    context: int,
) -> Expected:
    """`token_seconds` at another batch and context than the placement was made for.

    Raises:
        UserError: as there.
    """
    return token_seconds(sizes, frequencies, hardware, at(placement, batch, context))


class Step(Protocol):
    """Predicts one step of a placement at another batch and context than it was made for."""

    def __call__(
        self,
        sizes: ModelSizes,
        frequencies: Frequencies | None,
        hardware: Hardware,
        placement: Placement,
        *,
        batch: int,
        context: int,
    ) -> Expected:
        """See `step_seconds`."""


def prompt_seconds(
    sizes: ModelSizes,
    frequencies: Frequencies | None,
    hardware: Hardware,
    placement: Placement,
    tokens: int,
    chunk: int = CHUNK,
    step: Step = step_seconds,
) -> float:
    """Seconds to read a prompt, `chunk` tokens to a step: a batch whose tokens share one sequence's keys and values.

    step: what a step takes; by default every row where the placement has it computed, as in decoding. How the engine
    here reads prompts, `placement.prefill.prefill_step` says.

    Of attention, only reading keys and values counts, halfway through the prompt on average: the products with them are
    fewer than those with weights until a prompt has several times as many tokens as the model has hidden units.

    Raises:
        UserError: as `token_seconds`.
    """
    check_whole("the tokens of a chunk", chunk, 1, MOST_BATCH)
    seconds = 0.0
    for size, count in ((chunk, tokens // chunk), (tokens % chunk, 1)):
        if size and count:
            # Each key is read once for the step, not once for each of its tokens.
            context = max(1, round(tokens / 2 / size))
            expected = step(sizes, frequencies, hardware, placement, batch=size, context=context)
            seconds += count * expected.token_seconds
    return seconds


def whole_layers(sizes: ModelSizes) -> ModelSizes:
    """A model whose layers move as one: attention's bytes are counted with the rows.

    A plan moves rows alone, over the link or from the drive; an engine that moves whole layers is told apart so.

    Raises:
        UserError: layers of several sizes.
    """
    if len(set(sizes.attention_bytes)) > 1:
        raise UserError("layers that move as one should all have the same size")
    return replace(
        sizes,
        row_bytes=sizes.row_bytes + round(sizes.attention_bytes[0] / sizes.n_rows),
        attention_bytes=(0,) * sizes.n_layers,
    )


def at(placement: Placement, batch: int, context: int) -> Placement:
    """A placement for other steps than it was made for. Of a plan, its bytes and times are left out."""
    budgets = replace(placement.budgets, batch=batch, context=context)
    bare = {field.name: getattr(placement, field.name) for field in fields(Placement)}
    return Placement(**{**bare, "budgets": budgets})


def byte_bound(
    sizes: ModelSizes,
    frequencies: Frequencies | None,
    placement: Placement,
    *,
    gpu: float,
    cpu: float,
    context: int,
    batch: int = 1,
) -> float:
    """Seconds of a decode step in which only bytes count, which no step of the placement can fall below.

    Each unit reads what it has to at `gpu` and `cpu` bytes per second, both of them at once in layers that are split;
    starting operators, handing over and sharing memory take no time. frequencies as in `step_seconds`.

    Raises:
        UserError: as there.
    """
    ideal = Hardware(
        name="bytes alone",
        description="",
        gpu=ComputeUnit(gpu, 0.0),
        cpu=ComputeUnit(cpu, 0.0),
        link_bandwidth=gpu,
        back_bandwidth=gpu,
        hand_over=0.0,
        sync=0.0,
        measured=False,
    )
    return step_seconds(sizes, frequencies, ideal, placement, batch=batch, context=context).token_seconds
