"""What predictors of each family cost and find: bytes, microseconds and activation mass, on a layer of a model.

    python scripts/bench_predictors.py demo --text hybrid/demo/profile.jsonl --json benchmarks/predictors-demo.json

Samples of the text are captured through the engine; each family is made from the same training tokens, calibrated on
others, and judged on a third part. `mass` is the share of a token's summed |activation| that as many neurons carry as
are active; `named` what has to be named to keep 99 % of it, over what is active. Microseconds are of the native
operator, for one token, the median of many; `none` is timed as the gates that are computed instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from hybrid.ops import cpu
from hybrid.runtime.cores import usable_cores
from hybrid.runtime.engine import Engine
from hybrid.stages.opening import open_engine, resolve
from hybrid.stages.profile_passes import gates_of
from hybrid.stages.texts import Corpus
from profiler.capture import LayerSamples, Split, encode_magnitude
from profiler.matrix import Matrix
from profiler.predictor import Predictor
from profiler.selection import LOW_BITS, ladder
from profiler.training import Recipe, calibrate, mass_at_active, measure, train_perceptron, tune_factors
from profiler.training_free import factors, few_bits, truncated

CALLS = 2000  # of an operator that is timed


@dataclass(frozen=True)
class Row:
    """One predictor of a layer; see the module."""

    layer: int
    active: float
    family: str
    rank: int
    weight_format: str
    nbytes: int
    share_of_ffn: float
    microseconds: float
    mass_at_active: float
    named_over_active: float


class Keep:
    """A tap that keeps what some layers read and compute, by neuron id."""

    def __init__(self, layers: list[int], orders: dict[int, torch.Tensor]) -> None:
        self.orders = orders
        self.hidden: dict[int, list[torch.Tensor]] = {i: [] for layer in layers for i in (layer - 1, layer)}
        self.magnitude: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}

    def document(self) -> None:
        """Nothing."""

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """See `profiler.tap.Tap`."""
        if layer in self.hidden:
            self.hidden[layer].append(hidden.bfloat16())
        if layer in self.magnitude:
            self.magnitude[layer].append(encode_magnitude(activation[:, self.orders[layer]]))

    def samples(self, layer: int, read: int | None = None) -> LayerSamples:
        """Every tenth stretch of tokens to calibrate with, another to judge with, the rest to train on.

        read: the layer whose FFN's input predictors are to read; None for its own.
        """
        hidden = torch.cat(self.hidden[layer if read is None else read])
        magnitude = torch.cat([m.view(torch.uint8) for m in self.magnitude[layer]])
        role = torch.arange(len(hidden)) // 500 % 10
        kept = (role < 8, role == 8, role == 9)
        return LayerSamples(*(Split(hidden[k], magnitude[k].view(torch.float8_e5m2)) for k in kept))


def capture(engine: Engine, text: Path, layers: list[int], tokens: int) -> Keep:
    """Run the text through the engine, dense."""
    corpus = Corpus.open([text], engine.tokenizer, engine.directory.path)
    orders = {i: torch.from_numpy(engine.directory.neuron_ids(i)).argsort() for i in layers}
    keep = Keep(layers, orders)
    for window in corpus.windows(engine.context, tokens):
        engine.hidden_states(window.ids, tap=keep)
    return keep


def microseconds(predictor: Predictor, gates: Matrix, threads: int) -> float:
    """Of naming rows for one token, or of the layer's gates where nothing predicts."""
    pool, program = cpu.Pool(threads), cpu.Program()
    x = torch.randn(cpu.MAX_TOKENS, gates.columns)
    if predictor.fc2 is None:
        y = torch.zeros(cpu.MAX_TOKENS, gates.rows)
        program.linear(pool, x.data_ptr(), gates.columns, [cpu.matrix_arguments(gates, None, y)])
    else:
        named = torch.zeros(cpu.MAX_TOKENS, predictor.neurons, dtype=torch.bool)
        ids = torch.arange(predictor.neurons, dtype=torch.int32)
        first = None if predictor.fc1 is None else cpu.matrix_arguments(predictor.fc1)
        second, rectified = cpu.matrix_arguments(predictor.fc2, predictor.bias), predictor.family == "perceptron"
        state = (x.data_ptr(), x.shape[1])
        program.predict(pool, first, rectified, second, predictor.threshold, ids.data_ptr(), *state, named.data_ptr())
    unused = torch.zeros(cpu.MAX_TOKENS, dtype=torch.int64).data_ptr()
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        program.run(1, unused, unused, unused)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def rows_of(engine: Engine, keep: Keep, layer: int, recipe: Recipe, threads: int) -> list[Row]:
    """Every family on one layer."""
    spec, samples = engine.directory.spec, keep.samples(layer)
    stored = engine.directory.layer(layer)
    gates = gates_of(stored, spec)
    width = engine.directory.stride_bytes // len(spec.row_parts) // stored.rows.element_size()
    matrix = Matrix(stored.rows[:, :width], stored.weight_format, spec.hidden_size)
    ranks = ladder(spec.hidden_size, spec.n_neurons)
    made = [Predictor.none(spec.hidden_size, spec.n_neurons)]
    made += [p for weight_format in LOW_BITS if (p := few_bits(gates, weight_format)) is not None]
    most = factors(gates, samples.train, ranks[-1])
    made += [truncated(most, rank) for rank in ranks]
    made += [tune_factors(truncated(most, rank), samples.train, recipe, 0) for rank in ranks]
    made += [train_perceptron(samples.train, rank, recipe, 0) for rank in ranks]
    judged = [(p, place >= len(made) - 2 * len(ranks), samples) for place, p in enumerate(made)]
    if layer:
        ahead = keep.samples(layer, layer - 1)
        near = factors(gates, ahead.train, ranks[-1], decides=samples.train.hidden)
        tuned = (tune_factors(truncated(near, rank), ahead.train, recipe, 0) for rank in ranks)
        judged += [(replace(p, reads="previous_ffn_input"), True, ahead) for p in tuned]
    rows = []
    for predictor, trained, read in judged:
        predictor = predictor.quantised()
        if predictor.fc2 is not None:
            predictor = replace(predictor, threshold=calibrate(predictor, read.calibration, recipe.keep))
        quality = measure(predictor, read.test)
        mass = 1.0 if predictor.fc2 is None else mass_at_active(predictor, read.test)
        rows.append(
            Row(
                layer=layer,
                active=quality.active,
                family=predictor.family + ", trained" * trained + ", a layer ahead" * (read is not samples),
                rank=predictor.rank,
                weight_format=predictor.weight_formats[-1] if predictor.matrices else "-",
                nbytes=predictor.nbytes,
                share_of_ffn=predictor.nbytes / (spec.n_neurons * engine.directory.stride_bytes),
                microseconds=microseconds(predictor, matrix, threads),
                mass_at_active=mass,
                named_over_active=quality.named / quality.active if quality.active else 1.0,
            )
        )
        print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| layer | active | family | rank | format | bytes | of the FFN's | microseconds | mass | named for 99 % |"
    ]
    lines += ["|--:|--:|---|--:|---|--:|--:|--:|--:|--:|"]
    for r in rows:
        rank = str(r.rank) if r.rank else "-"
        cells = [f"{r.layer}", f"{r.active:.1%}", r.family, rank, r.weight_format, f"{r.nbytes:,}"]
        cells += [f"{r.share_of_ffn:.1%}", f"{r.microseconds:.1f}", f"{r.mass_at_active:.2%}"]
        named = "all" if r.family == "none" else f"{r.named_over_active:.2f}x"
        lines.append("| " + " | ".join([*cells, named]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory, or demo")
    parser.add_argument("--text", type=Path, help="what is captured; JSONL, a file or a folder")
    parser.add_argument("--layers", default="0,3,5", help="which (default 0,3,5)")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the text at most (default 100000)")
    parser.add_argument("--steps", type=int, default=300, help="of training; five times as many from random weights")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of the timed operators")
    parser.add_argument("--json", type=Path, help="where the figures go; given alone with --show, read from there")
    parser.add_argument("--show", action="store_true", help="print the table of --json, measure nothing")
    args = parser.parse_args()
    if args.show:
        print(table([Row(**row) for row in json.loads(args.json.read_text())["rows"]]))
        return
    layers = [int(layer) for layer in args.layers.split(",")]
    recipe = Recipe(steps=args.steps)
    with open_engine(resolve(args.model), mode="dense") as engine, torch.inference_mode(False):
        keep = capture(engine, args.text, layers, args.tokens)
        rows = [row for layer in layers for row in rows_of(engine, keep, layer, recipe, args.threads)]
    if args.json:
        body = {"model": args.model, "isa": cpu.isa(), "threads": args.threads, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(body, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
