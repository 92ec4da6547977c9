"""Measure this engine on this machine's GPU with models that lie there: operators, the machine, comparisons, a trace.

    python scripts/gpu_measure.py MODEL... --out FOLDER [--second-device cuda] [--only operators,hardware,compare,trace]

FOLDER/gpu-NAME.json, named after the GPU, holds every row as soon as it is measured, so that a run that is cut leaves
what it has; beside it lie a picture of each model's middle budget, and the first one's trace. MODEL.checkpoint, where
there is one, is compared with as well. scripts/show_gpu.py prints the result. --second-device cpu rehearses all of it
without a GPU.

    operators  bytes per second of each kind of operator over all layers in turn, beside a copy in the GPU's memory
    hardware   `hybrid hardware`, quickly, whose figures the plans of what follows are made with
    compare    `hybrid compare` within shares of the model's size, each speed beside the bound that bytes set
    trace      what both units do when, on the plan for the middle share, and what of the smaller side is hidden
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu import bounds, operators
from gpu.machine import machine, short_name
from peers.command import explained, tell
from peers.floor import Bandwidth

from hybrid.cli_compare import comparison_lines
from hybrid.runtime.cores import usable_cores
from hybrid.runtime.nvml import free_vram
from hybrid.stages.compare import compare
from hybrid.stages.compare_contenders import Settings
from hybrid.stages.hardware import QUICK, HardwareSettings
from hybrid.stages.hardware import measure as measure_machine
from hybrid.stages.inspect import inspect
from hybrid.stages.model_predictors import find_predictors
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings, baseline_plans
from hybrid.stages.plan import plan as write_plan
from hybrid.store.directory import ModelDirectory
from hybrid.store.files import ModelFiles
from placement.plan import Budgets
from profiler.artifacts import UserError, format_size, write_atomic

PARTS = ("operators", "hardware", "compare", "trace")
PROMPT = "def parse_args("
WHOLE = 1.5  # of a model's size, a budget that holds all of it
LEFT_FREE = 1 << 30  # bytes of the GPU that such a budget leaves
TRACED_TOKENS = 24
HELDOUT = Path(__file__).resolve().parent.parent / "hybrid" / "demo" / "heldout.jsonl"


class Results:
    """What was measured so far, on disk after every row."""

    def __init__(self, folder: Path, described: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / f"gpu-{short_name(described)}.json"
        self.body: dict[str, Any] = {"machine": described, "models": {}}
        if self.path.exists():
            before = json.loads(self.path.read_text())
            if before["machine"]["gpu"] == described["gpu"]:
                self.body = {**before, "machine": described}

    def model(self, name: str) -> dict[str, Any]:
        """The part of one model."""
        part: dict[str, Any] = self.body["models"].setdefault(name, {})
        return part

    def save(self) -> None:
        """Write all of it."""
        write_atomic(self.path, json.dumps(self.body, indent=1, default=str).encode() + b"\n")


def measure_operators(model: Path, results: Results, args: argparse.Namespace) -> None:
    """Every operator, over the layers of a plan that has as many as fit on the GPU."""
    files, size = ModelFiles.open_files(model), model_bytes(model)
    free = free_vram() if args.second_device == "cuda" else None
    vram = int(WHOLE * size) if free is None else min(int(WHOLE * size), free - LEFT_FREE)
    with ModelDirectory.open(model) as directory:
        predictors = find_predictors(directory, "default")
        context = min(files.spec.max_positions, max(operators.CONTEXTS))
        plans = baseline_plans(files, Budgets(vram, None, context), "f16", 0)
        placed = next(iter(plans.values()))
        if isinstance(placed, str):
            raise UserError(placed)
        rows = results.model(model.name)["operators"] = []
        with open_engine(model, mode="dense", plan=placed, device=args.second_device, context=context) as engine:
            for row in operators.measure(engine, predictors):
                rows.append(row)
                results.save()
                tell(f"{model.name}: {row}")


def measure_hardware(results: Results, args: argparse.Namespace) -> None:
    """The machine's figures, where plans find them, and in the result."""
    formats = tuple(args.formats.split(","))
    settings = HardwareSettings(second_device=args.second_device, formats=formats, flash=False, scale=QUICK)
    report = measure_machine(settings)
    results.body["hardware"] = asdict(report.hardware)
    results.body["hand_over"] = {
        "asleep_seconds": report.hardware.hand_over,
        "watching_seconds": report.short_hand_over,
        "apart": report.hand_over_apart,
    }
    results.save()
    write_atomic(results.folder / "hardware.json", report.path.read_bytes())
    tell(f"hardware: a hand-over takes {report.hardware.hand_over * 1e6:.1f} us after a millisecond of other work")


def measure_comparisons(model: Path, results: Results, args: argparse.Namespace, cpu: float) -> None:
    """Every budget, with the bound of bytes beside each of this engine's speeds."""
    files, size = ModelFiles.open_files(model), model_bytes(model)
    checkpoint = model.with_name(f"{model.name}.checkpoint")
    part = results.model(model.name)
    rows = part["compare"] = []
    gpu = next((r["gigabytes_per_second"] * 1e9 for r in part.get("operators", []) if r["operator"] == "copy"), None)
    for share in args.budgets:
        settings = Settings(
            vram=int(share * size),
            device=args.second_device,
            rounds=args.rounds,
            tokens=args.tokens,
            prompts=args.prompts,
            text_tokens=args.text_tokens,
            context=args.context,
            checkpoint=checkpoint if checkpoint.exists() else None,
            python=args.peer_python,
        )
        row: dict[str, Any] = {"share": share, "vram": settings.vram, "model_bytes": size}
        try:
            middle = share == args.budgets[len(args.budgets) // 2]
            plot = results.folder / f"compare-{model.name}.png" if middle else None
            result = compare(model, [args.text], settings, plot=plot)
            row["comparison"] = asdict(result)
            if gpu is not None:
                row["bounds"] = bounds.bounds(files, settings, gpu, cpu)
                row["bandwidths"] = {"gpu": gpu, "cpu": cpu}
            tell("\n".join([f"{model.name}, {format_size(int(share * size))}:", *comparison_lines(result)]))
        except UserError as error:
            row["reason"] = str(error)
            tell(f"{model.name}, {share:.0%}: {error}")
        rows.append(row)
        results.save()


def measure_trace(model: Path, results: Results, args: argparse.Namespace) -> None:
    """A short run on the plan for the middle budget, traced."""
    share = args.budgets[len(args.budgets) // 2]
    vram = int(share * model_bytes(model))
    part = results.model(model.name)["trace"] = {"share": share, "vram": vram}
    try:
        settings = PlanSettings(vram=vram, context=args.context, name="gpu-measure", second_device=args.second_device)
        write_plan(model, settings)
    except UserError as error:
        part["reason"] = str(error)
        results.save()
        return
    path = results.folder / f"trace-{model.name}.json"
    command = [sys.executable, "-m", "hybrid.cli", "run", model.resolve(), PROMPT, "-n", TRACED_TOKENS]
    command += ["--plan", "gpu-measure", "--second-device", args.second_device, "--trace", path.resolve(), "--json"]
    # In a folder without a package of this name: the one that is installed has the native operators.
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=results.folder)
    if done.returncode:
        part["reason"] = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
    else:
        summary = json.loads(done.stdout)["summary"]
        names = ("tokens_per_second", "hidden_share", "split_milliseconds", "rows_per_token")
        part |= {name: summary[name] for name in names}
    results.save()
    tell(f"{model.name}: trace: {part}")


def model_bytes(model: Path) -> int:
    """Bytes of a model's weights."""
    return sum(inspect(model).bytes.values())


def numbers(text: str) -> list[float]:
    """Numbers with commas between them."""
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Measure the parts that are asked for; what fails is noted, and the next one is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model directories with profiles")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--text", type=Path, default=HELDOUT, help="for prompts and perplexity")
    parser.add_argument("--second-device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--budgets", type=numbers, default=[0.25, 0.5, 0.75], help="shares of the model's size")
    parser.add_argument("--formats", default="bf16,f16,q8_0,q4_0", help="of weights, for the machine's figures")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16, help="decoded after each prompt")
    parser.add_argument("--text-tokens", type=int, default=256)
    parser.add_argument("--peer-python", help="an interpreter that has accelerate or llama_cpp")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))} is not known; parts are {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []

    def attempt(what: str, call: Callable[[], None]) -> None:
        tell(what)
        try:
            call()
        except UserError as error:
            failed.append(f"{what}: {error}")
            results.body.setdefault("failed", []).append(failed[-1])
            results.save()

    with explained("gpu_measure", UserError, OSError):
        results = Results(args.out, machine(args.second_device))
        results.save()
        for model in args.models if "operators" in parts else ():
            attempt(f"operators of {model.name}", lambda model=model: measure_operators(model, results, args))
        if "hardware" in parts:
            attempt("hardware", lambda: measure_hardware(results, args))
        if "compare" in parts:
            cpu = Bandwidth(usable_cores()).measure()
            results.body["cpu_bandwidth"] = cpu
            for model in args.models:
                attempt(f"compare {model.name}", lambda model=model: measure_comparisons(model, results, args, cpu))
        for model in args.models[:1] if "trace" in parts else ():
            attempt(f"trace of {model.name}", lambda model=model: measure_trace(model, results, args))
    if failed:
        raise SystemExit("gpu_measure: " + "; ".join(failed))


if __name__ == "__main__":
    main()
