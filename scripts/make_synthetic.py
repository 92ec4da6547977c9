"""Make a model of any shape with planted sparsity, from nothing: as a checkpoint, a model directory, or a GGUF file.

    python scripts/make_synthetic.py CHECKPOINT --hidden 2048 --layers 22 --ffn 5632 --heads 32 --kv-heads 4
    python scripts/make_synthetic.py --preset llama-7b --directory DIR --format q4_0 --predictor-overshoot 1.5
    python scripts/make_synthetic.py --preset llama-1b --gguf FILE --gguf-type q8_0

Text from it is noise; its sizes, its sparsity, its skew and the rank of its gates are those of a real model, which is
what speed and memory depend on. A directory comes with the profile and the predictors that were planted, is made
layer by layer and needs no checkpoint. The same seed gives the same weights in every output.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch
from synthetic.checkpoint import write_checkpoint
from synthetic.directory import write_directory
from synthetic.shape import FAMILIES, PRESETS, Shape
from synthetic.weights import PlantedWeights

from profiler.artifacts import UserError
from profiler.formats import WEIGHT_FORMATS


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Shape]:
    """The outputs asked for, and the shape: a preset's, or a small one, with what was given by itself in its place.

    Raises:
        UserError: the sizes do not fit each other.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="folder to make: a Hugging Face checkpoint in bf16")
    parser.add_argument("--directory", type=Path, help="model directory to make, profiled and with predictors")
    parser.add_argument("--format", choices=WEIGHT_FORMATS, default="bf16", help="of the directory (default bf16)")
    parser.add_argument("--gguf", type=Path, help="file to make, for llama.cpp")
    parser.add_argument("--gguf-type", choices=WEIGHT_FORMATS, default="f16", help="of its matrices (default f16)")
    parser.add_argument("--preset", choices=list(PRESETS), help="a known model's sizes; single options stand above it")
    shape = parser.add_argument_group("shape")
    shape.add_argument("--family", choices=FAMILIES)
    shape.add_argument("--hidden", type=int)
    shape.add_argument("--layers", type=int)
    shape.add_argument("--ffn", type=int)
    shape.add_argument("--heads", type=int)
    shape.add_argument("--kv-heads", type=int)
    shape.add_argument("--vocab", type=int, help="at least the tokenizer's 4096 pieces (default)")
    shape.add_argument("--context", type=int)
    planted = parser.add_argument_group("what is planted")
    planted.add_argument("--sparsity", type=float, help="share of neurons silent for a token (default 0.9; OPT 0.96)")
    planted.add_argument(
        "--hot-share", type=float, help="share of neurons that carry 80 %% of the activations (default 0.26)"
    )
    planted.add_argument("--rank", type=int, help="of the gates; a predictor of twice that and one is exact (127)")
    planted.add_argument(
        "--predictor-overshoot", type=float, dest="overshoot", help="rows that predictors name over rows that fire (1)"
    )
    planted.add_argument(
        "--activation",
        choices=["relu", "relu2", "silu"],
        help="silu plants no sparsity (default relu; Arcee's is relu2)",
    )
    planted.add_argument("--seed", type=int)
    planted.add_argument(
        "--hottest-first", action="store_true", help="neurons in the order of how often they fire: no rows to move"
    )
    parser.add_argument(
        "--device", default="cpu", help="where values are drawn; a GPU draws others, and fast (default cpu)"
    )
    args = parser.parse_args(arguments)
    if not (args.checkpoint or args.directory or args.gguf):
        parser.error("nothing to make: name a checkpoint folder, --directory or --gguf")
    given = {f.name: getattr(args, f.name) for f in fields(Shape) if getattr(args, f.name) is not None}
    return args, Shape(**{**PRESETS.get(args.preset, {}), **given})


def device_named(name: str) -> torch.device:
    """A device of torch's.

    Raises:
        UserError: there is none of that name here.
    """
    if name != "cpu" and not (name == "cuda" and torch.cuda.is_available()):
        raise UserError(f"torch sees no device {name!r} here; values are drawn on the CPU without --device")
    return torch.device(name)


def tell(stage: str, done: int, total: int) -> None:
    """One line that is written over, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r{stage} {done / total:.0%}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main() -> None:
    """Make what was asked for."""
    try:
        args, shape = parse()
        weights = PlantedWeights(shape, device_named(args.device), args.hottest_first)
        if args.checkpoint:
            print(f"{args.checkpoint}: {write_checkpoint(args.checkpoint, weights) / 1e6:,.0f} M parameters")
        if args.directory:
            write_directory(args.directory, weights, args.format, tell)
            print(f"{args.directory}: {args.format}")
        if args.gguf:
            from synthetic.gguf_file import write_gguf  # needs gguf, which is not everywhere

            write_gguf(args.gguf, weights, args.gguf_type)
            print(f"{args.gguf}: {args.gguf_type}, {args.gguf.stat().st_size / 1e6:,.0f} MB")
    except (UserError, OSError) as error:
        raise SystemExit(f"make_synthetic: {error}") from error


if __name__ == "__main__":
    main()
