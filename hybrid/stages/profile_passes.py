"""The passes of a profiling run: the sample's round, layer by layer, then the rest of the text in rounds.

In the sample's round each layer's samples are captured, its predictor trained and its names counted before the next
layer; the other rounds only count. So every token passes through the model once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from hybrid.runtime.by_layer import LayerRunner
from hybrid.stages.profile_checkpoint import Checkpoint
from hybrid.stages.profile_estimate import format_seconds
from hybrid.stages.profile_rounds import Clock, Round
from hybrid.stages.profile_text import Ints, TokenText, in_batches
from hybrid.store.rows import Ids
from profiler.capture import Capture, CaptureLimits, LayerSamples, Sampling, bytes_per_token
from profiler.predictor import LowRankPredictor, PredictorQuality
from profiler.recorder import Recorder
from profiler.training import Recipe, train_predictor

Tell = Callable[[str, int, int], None]
Trained = tuple[LowRankPredictor, PredictorQuality]
WORTH_TELLING = 60.0  # seconds of training


@dataclass
class Passes:
    """One run over a text.

    orders: neuron ids by row, of each layer. recipe: how predictors are trained; None trains none. given: predictors to
    count with instead. clock: what the run took so far.
    """

    runner: LayerRunner
    text: TokenText
    orders: list[Ids]
    recorder: Recorder
    checkpoint: Checkpoint
    recipe: Recipe | None
    given: list[Trained]
    seed: int
    tell: Tell
    note: Callable[[str], None]
    clock: Clock = field(default_factory=Clock)

    @property
    def sample(self) -> Ints:
        """Windows that predictors are trained on."""
        assert self.checkpoint.progress is not None
        return self.text.sample(self.checkpoint.progress.sample_tokens) if self.recipe else np.arange(0)

    @property
    def rounds(self) -> list[list[int]]:
        """The other windows, by round."""
        assert self.checkpoint.progress is not None
        rest = np.setdiff1d(np.arange(self.text.windows), self.sample, assume_unique=True)
        return list(in_batches(self.text, rest, self.checkpoint.progress.round_tokens, self.text.windows))

    def run(self) -> list[Trained]:
        """Count the whole text, from the last checkpoint on; the predictors of all layers, none where none name.

        Raises:
            UserError: too little text or memory to train on, values that are not finite, or a full disk.
        """
        progress = self.checkpoint.progress
        assert progress is not None
        if progress.counts is not None:
            self.recorder.restore(self.checkpoint.counts())
        trained = self._train(self.recipe) if self.recipe else self.given
        self._count([predictor for predictor, _ in trained])
        return trained

    def _train(self, recipe: Recipe) -> list[Trained]:
        progress, layers = self.checkpoint.progress, len(self.orders)
        assert progress is not None
        trained = self.checkpoint.predictors()
        if progress.layers == layers:
            return trained
        sample = self.sample
        hidden, neurons = self.runner.hidden, self.runner.neurons
        units, size = self.text.units(sample), bytes_per_token(hidden, neurons)
        room = replace(CaptureLimits(), memory=size * int(self.text.lengths[sample].sum()))
        sampling = Sampling(units, size, room, self.seed)
        here = Round(self.runner, self.text, sample, keep_inputs=True, clock=self.clock)
        if progress.layers:
            self.checkpoint.states(here.states)
        else:
            here.begin()
        for layer in range(progress.layers, layers):
            count = self._counter("first round", layer * here.tokens, layers * here.tokens)
            capture = Capture(sampling, hidden, neurons, self.orders[layer])
            here.through(layer, self.recorder, capture, on_tokens=count)
            trained.append(self.train_layer(capture.samples(), layer, recipe))
            del capture
            here.name(layer, self.recorder, trained[-1][0])
            self.checkpoint.save_layer(*trained[-1], self.recorder.state(), here.states)
        return trained

    def train_layer(self, samples: LayerSamples, layer: int, recipe: Recipe) -> Trained:
        """A layer's predictor and its quality, from the layer's samples."""
        layers, began = len(self.orders), time.perf_counter()

        def step(done: int) -> None:
            self.tell("training predictors", layer * recipe.steps + done, layers * recipe.steps)

        trained = train_predictor(samples, recipe, self.seed, step)
        took = time.perf_counter() - began
        self.clock.training += took
        if layer == 0 and took * layers > WORTH_TELLING:
            self.note(
                f"a predictor trains in {format_seconds(took)}: about {format_seconds(took * layers)} for all layers"
            )
        return trained

    def _count(self, predictors: list[LowRankPredictor]) -> None:
        assert self.checkpoint.progress is not None
        rounds, layers = self.rounds, len(self.orders)
        total = layers * sum(int(self.text.lengths[windows].sum()) for windows in rounds)
        before = layers * sum(int(self.text.lengths[w].sum()) for w in rounds[: self.checkpoint.progress.rounds])
        count = self._counter("counting", before, total)
        for windows in rounds[self.checkpoint.progress.rounds :]:
            here = Round(self.runner, self.text, np.array(windows), keep_inputs=False, clock=self.clock)
            here.begin()
            for layer in range(layers):
                predictor = predictors[layer] if predictors else None
                here.through(layer, self.recorder, predictor=predictor, on_tokens=count)
            self.checkpoint.save_round(self.recorder.state())

    def _counter(self, stage: str, done: int, total: int) -> Callable[[int], None]:
        def add(tokens: int) -> None:
            nonlocal done
            done += tokens
            self.tell(stage, done, total)

        return add
