"""What a profiling run will take, told before it starts: memory, scratch, and time from a probe of one layer."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from hybrid.runtime.by_layer import LayerRunner
from hybrid.runtime.memory import available_memory
from hybrid.spec import ModelSpec
from hybrid.stages.profile_rounds import BATCH_TOKENS
from hybrid.stages.profile_text import TOKEN_BYTES, TokenText, in_batches
from profiler.artifacts import UserError, format_size
from profiler.capture import MINIMUM_TOKENS, CaptureLimits, bytes_per_token
from profiler.profile import HALVES
from profiler.selection import ladder
from profiler.training import Recipe

FP32 = 4
INT64 = 8
MOST_MEMORY = 4 << 30  # taken unless more is asked for; more amortises nothing
FREE_SHARE = 2  # of the free memory, one part in so many
ROUND_TOKENS = 32_768  # a checkpoint follows each round; to read a layer once for so many is next to nothing
LEAST_ROUND = 1024
PROBED_TOKENS = 256


@dataclass(frozen=True)
class Estimate:
    """tokens: of the text. sample_tokens: of them in the round that predictors are trained on. rounds: beside that one.

    memory: bytes at most, beside the model's own. scratch: bytes on the disk of the model directory. seconds: of the
    forward passes, without training.
    """

    tokens: int
    sample_tokens: int
    rounds: int
    memory: int
    scratch: int
    seconds: float

    def line(self) -> str:
        """As it is told before a run."""
        sampled = f", predictors trained on {self.sample_tokens:,} of them" if self.sample_tokens else ""
        rounds = self.rounds + bool(self.sample_tokens)
        return (
            f"{self.tokens:,} tokens in {rounds} round{'s' * (rounds != 1)}{sampled}; memory up to "
            f"{format_size(self.memory)} beside the model's, scratch {format_size(self.scratch)}; forward passes take "
            f"about {format_seconds(self.seconds)}"
        )


@dataclass(frozen=True)
class Sizes:
    """Bytes that profiling takes, from the model's sizes and the number of domains."""

    spec: ModelSpec
    domains: int
    recipe: Recipe | None  # None where nothing is trained
    rank: int | None = None  # the one rank to train; None where it is searched
    look_ahead: bool = False  # what FFNs read is kept from one layer to the next

    @property
    def fixed(self) -> int:
        """Whatever the text: the counts (and a copy, when they are written), a batch, one layer's training."""
        spec, batch = self.spec, max(BATCH_TOKENS, 2048)
        counts = 2 * INT64 * spec.n_layers * spec.n_neurons * (HALVES * self.domains + 3)
        buffers = batch * (spec.n_neurons * (1 + FP32) + 2 * FP32 * spec.hidden_size)
        return counts + buffers + self._training

    @property
    def sample_token(self) -> int:
        """A token of the sample: its state, what an FFN read of it, and one layer's sample."""
        hidden, earlier = self.spec.hidden_size, (FP32 + 2) * self.spec.hidden_size
        return 2 * FP32 * hidden + bytes_per_token(hidden, self.spec.n_neurons) + self.look_ahead * earlier

    @property
    def round_token(self) -> int:
        """A token of another round: its state."""
        return FP32 * self.spec.hidden_size * (3 if self.look_ahead else 1)

    @property
    def _training(self) -> int:
        if self.recipe is None:
            return 0
        spec = self.spec
        gates = 2 * spec.hidden_size * spec.n_neurons  # widened, and the logits of a block of tokens
        return FP32 * (6 * self.largest_predictor + 6 * self.recipe.batch * spec.n_neurons + gates)

    @property
    def largest_predictor(self) -> int:
        """Weights of the largest one that is tried for a layer."""
        spec = self.spec
        rank = self.rank or ladder(spec.hidden_size, spec.n_neurons)[-1]
        return rank * (spec.hidden_size + spec.n_neurons)


def choose_tokens(sizes: Sizes, memory: int | None, limits: CaptureLimits) -> tuple[int, int]:
    """Tokens of the sample's round and of the other rounds that fit the memory: `memory` bytes, or a part of what is
    free.

    Raises:
        UserError: the memory does not hold enough to train on, or a round worth the name.
    """
    allowed = min(MOST_MEMORY, available_memory() // FREE_SHARE) if memory is None else memory
    room = allowed - sizes.fixed
    least = max(2 * MINIMUM_TOKENS * sizes.sample_token if sizes.recipe else 0, LEAST_ROUND * sizes.round_token)
    if room < least:
        raise UserError(
            f"{format_size(allowed)} of memory are too little to profile this model; "
            f"allow at least {format_size(sizes.fixed + least)} with --memory"
        )
    sample = min(limits.tokens, room // sizes.sample_token) if sizes.recipe else 0
    return sample, min(ROUND_TOKENS, room // sizes.round_token)


def estimate(
    runner: LayerRunner, text: TokenText, sizes: Sizes, sample: int, round_tokens: int, rounds: int
) -> Estimate:
    """The figures of a run. The time is that of a few windows through the first layer, the second time.

    sample: tokens of the sample's round. rounds: the others.
    """
    counts = FP32 * sizes.spec.n_layers * sizes.spec.n_neurons * (HALVES * sizes.domains + 3)
    predictors = 0
    if sizes.recipe:
        predictors = 2 * sizes.spec.n_layers * sizes.largest_predictor
    most = min(round_tokens, text.tokens - sample)
    return Estimate(
        tokens=text.tokens,
        sample_tokens=sample if sizes.recipe else 0,
        rounds=rounds,
        memory=sizes.fixed + max(sample * sizes.sample_token, most * sizes.round_token),
        scratch=TOKEN_BYTES * text.tokens + 2 * (counts + sample * sizes.round_token) + 2 * predictors,
        seconds=text.tokens * sizes.spec.n_layers * _seconds_per_token(runner, text),
    )


def format_seconds(seconds: float) -> str:
    """As people read it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _seconds_per_token(runner: LayerRunner, text: TokenText) -> float:
    """Of one layer."""
    run = next(in_batches(text, range(text.windows), PROBED_TOKENS, PROBED_TOKENS // 4))
    batch = runner.batch([text.window(w)[:PROBED_TOKENS] for w in run])
    states = torch.empty(len(batch), runner.hidden)
    runner.embed(batch, states)
    runner.run(0, batch, states.clone())  # the first time reads the layer
    began = time.perf_counter()
    runner.run(0, batch, states)
    return (time.perf_counter() - began) / len(batch)
