"""The passes of a profiling run: the sample's round, layer by layer, then the rest of the text in rounds.

In the sample's round each layer's samples are captured, its predictor trained and its names counted before the next
layer; the other rounds only count. So every token passes through the model once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from hybrid.runtime.by_layer import LayerRunner
from hybrid.spec import ModelSpec
from hybrid.stages.profile_checkpoint import Checkpoint, Progress
from hybrid.stages.profile_estimate import format_seconds
from hybrid.stages.profile_rounds import Clock, Round
from hybrid.stages.profile_text import Ints, TokenText, in_batches
from hybrid.store.directory import ModelDirectory
from hybrid.store.neurons import LayerRows
from hybrid.store.rows import Ids
from profiler.capture import Capture, CaptureLimits, LayerSamples, Sampling, bytes_per_token
from profiler.formats import vector_bytes
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.recorder import Recorder
from profiler.selection import Candidate, Target, allocate, search
from profiler.training import Recipe
from profiler.training_free import Gates

Tell = Callable[[str, int, int], None]
WORTH_TELLING = 60.0  # seconds of training


@dataclass
class Passes:
    """One run over a text.

    orders: neuron ids by row, of each layer. recipe, target, predictor_bytes: how predictors are trained and chosen; a
    recipe of None trains none. given: predictors to count with instead. look_ahead: predictors, those given too, read
    what the FFN of the layer before read. clock: what the run took so far.
    """

    directory: ModelDirectory
    runner: LayerRunner
    text: TokenText
    orders: list[Ids]
    recorder: Recorder
    checkpoint: Checkpoint
    recipe: Recipe | None
    target: Target
    predictor_bytes: int | None
    given: PredictorSet | None
    look_ahead: bool
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
        """The windows that are left to be counted, by round.

        With a budget for all predictors, those of the sample are among them: which predictors name is known only when
        all layers are trained.
        """
        assert self.checkpoint.progress is not None
        counted = self.sample if self.predictor_bytes is None else np.arange(0)
        rest = np.setdiff1d(np.arange(self.text.windows), counted, assume_unique=True)
        return list(in_batches(self.text, rest, self.checkpoint.progress.round_tokens, self.text.windows))

    def sampling(self) -> Sampling:
        """Which tokens of the sample are kept to train on.

        Raises:
            UserError: there are too few.
        """
        units, size = self.text.units(self.sample), bytes_per_token(self.runner.hidden, self.runner.neurons)
        return Sampling(units, size, replace(CaptureLimits(), memory=size * sum(units)), self.seed)

    def run(self) -> PredictorSet | None:
        """Count the whole text, from the last checkpoint on; the predictors of all layers, None where none name.

        Raises:
            UserError: too little text or memory to train on, values that are not finite, or a full disk.
        """
        progress = self.checkpoint.progress
        assert progress is not None
        if progress.counts is not None:
            self.recorder.restore(self.checkpoint.counts())
        predictors = self._train(self.recipe) if self.recipe else self.given
        self._count(predictors)
        return predictors

    def _train(self, recipe: Recipe) -> PredictorSet:
        progress, layers = self.checkpoint.progress, len(self.orders)
        assert progress is not None
        if progress.layers < layers:
            self._sample_round(recipe, progress)
        found = self.checkpoint.candidates()
        return allocate(self.directory.source_digest, found, self.predictor_bytes)

    def _sample_round(self, recipe: Recipe, progress: Progress) -> None:
        sample, layers = self.sample, len(self.orders)
        hidden, neurons, sampling = self.runner.hidden, self.runner.neurons, self.sampling()
        here = Round(self.runner, self.text, sample, keep_inputs=True, clock=self.clock)
        if progress.layers:
            self.checkpoint.states(here.kept if self.look_ahead else here.states)
        else:
            here.begin()
        recorder = self.recorder if self.predictor_bytes is None else None
        for layer in range(progress.layers, layers):
            count = self._counter("first round", layer * here.tokens, layers * here.tokens)
            capture = Capture(sampling, hidden, neurons, self.orders[layer])
            earlier = here.inputs.clone() if self.look_ahead and layer else None
            here.through(layer, recorder, capture, on_tokens=count)
            ahead = None if earlier is None else capture.samples_of(earlier)
            candidates = self.train_layer(capture.samples(), layer, recipe, ahead)
            del capture, ahead
            if recorder is not None:
                here.name(layer, recorder, candidates[0].predictor, earlier)
            self.checkpoint.save_layer(candidates, self.recorder.state(), here.kept if self.look_ahead else here.states)

    def train_layer(
        self, samples: LayerSamples, layer: int, recipe: Recipe, ahead: LayerSamples | None
    ) -> list[Candidate]:
        """What was tried for a layer, from its samples, the chosen one first; `ahead` as in `search`.

        Without a budget for all predictors the chosen one is taken; of the others only what they were worth is kept.
        """
        layers, began = len(self.orders), time.perf_counter()
        gates = gates_of(self.directory.layer(layer), self.directory.spec)
        found = search(samples, gates, recipe, self.target, self.seed, None, ahead)
        self.tell("training predictors", layer + 1, layers)
        took = time.perf_counter() - began
        self.clock.training += took
        if layer == 0 and took * layers > WORTH_TELLING:
            every = format_seconds(took * layers)
            self.note(f"a predictor trains in {format_seconds(took)}: about {every} for all layers")
        if self.predictor_bytes is None:
            stand_in = Predictor.none(self.runner.hidden, self.runner.neurons)
            found = [found[0], *(replace(candidate, predictor=stand_in) for candidate in found[1:])]
        return found

    def _count(self, predictors: PredictorSet | None) -> None:
        assert self.checkpoint.progress is not None
        rounds, layers = self.rounds, len(self.orders)
        total = layers * sum(int(self.text.lengths[windows].sum()) for windows in rounds)
        before = layers * sum(int(self.text.lengths[w].sum()) for w in rounds[: self.checkpoint.progress.rounds])
        count = self._counter("counting", before, total)
        for windows in rounds[self.checkpoint.progress.rounds :]:
            here = Round(self.runner, self.text, np.array(windows), keep_inputs=self.look_ahead, clock=self.clock)
            here.begin()
            for layer in range(layers):
                predictor = predictors.layers[layer] if predictors else None
                if predictor is None or predictor.reads != "previous_ffn_input":
                    here.through(layer, self.recorder, predictor=predictor, on_tokens=count)
                    continue
                earlier = here.inputs.clone()
                here.through(layer, self.recorder, on_tokens=count)
                here.name(layer, self.recorder, predictor, earlier)
            self.checkpoint.save_round(self.recorder.state())

    def _counter(self, stage: str, done: int, total: int) -> Callable[[int], None]:
        def add(tokens: int) -> None:
            nonlocal done
            done += tokens
            self.tell(stage, done, total)

        return add


def gates_of(layer: LayerRows, spec: ModelSpec) -> Gates:
    """What decides whether a layer's neurons are active, by neuron id: the first vector of each row, and its bias."""
    order = torch.from_numpy(np.argsort(layer.neuron_ids))
    width = vector_bytes(layer.weight_format, spec.hidden_size) // layer.rows.element_size()
    first = Matrix(layer.rows[:, :width], layer.weight_format, spec.hidden_size).widened(order)
    return Gates(first, None if layer.bias is None else layer.bias[order].clone())
