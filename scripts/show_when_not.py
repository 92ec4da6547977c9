"""Prints when hybrid is the wrong program: what was measured at low sparsity, what is predicted where everything fits.

    python scripts/show_when_not.py

Speeds by sparsity are those that `scripts/bench_growth.py` measured, from its file; a model that fits the GPU is
predicted as `hybrid simulate` does it, on a machine that is known from data sheets.
"""

from __future__ import annotations

import json
from pathlib import Path

from hybrid.reports import table
from hybrid.stages.simulate import SimulateSettings, simulate_shape
from profiler.artifacts import parse_size

MEASURED = Path(__file__).resolve().parent.parent / "benchmarks" / "cpu-growth.json"
FORMAT = "q4_0"
SPARSITIES = (0, 0.5, 0.8, 0.9)
SHAPE, MACHINE, BUDGETS = "bamboo-7b", "rtx4060-laptop", ("6GiB", "3GiB")


def measured() -> list[str]:
    """Predicted mode over dense mode, and over llama.cpp, by the share of neurons that are silent."""
    found = json.loads(MEASURED.read_text())
    cases = [case for case in found["tables"]["sparsity"] if case["weight_format"] == FORMAT]
    dense = next(case["tokens_per_second"] for case in cases if case["mode"] == "dense")
    peer = found["peer"][FORMAT]["tokens_per_second"]
    speeds = {case["sparsity"]: case["tokens_per_second"] for case in cases if case["mode"] == "predicted"}
    rows = [
        [f"{share:.0%}", f"{speeds[share] / dense:.2f}x", f"{speeds[share] / peer:.2f}x"]
        for share in SPARSITIES
        if share in speeds
    ]
    about = f"measured: {found['preset']} of {found['shape']['layers']} layers in {FORMAT}, on the CPU"
    return [*table(["neurons silent", "predicted over dense", "over llama.cpp"], rows), "", about]


def predicted() -> list[str]:
    """The best plan over the best layer-wise one, computing everything and only what fires, as memory shrinks."""
    rows = []
    for mode in ("dense", "predicted"):
        for budget in BUDGETS:
            settings = SimulateSettings(
                hardware=(MACHINE,),
                plan=None,
                baselines=True,
                vram=parse_size(budget),
                ram=None,
                batches=(1,),
                contexts=(512,),
                prompt=0,
                mode=mode,
                weight_format=FORMAT,
                profile="default",
                thresholds="default",
                kv_format="f16",
            )
            plans = simulate_shape(SHAPE, settings).machines[0].predictions
            speeds = {p.plan: p.tokens_per_second for p in plans if p.tokens_per_second}
            best = max(speed for name, speed in speeds.items() if name != "planned")
            share = next(p.gpu_rows or 0 for p in plans if p.plan == "planned")
            rows.append([mode, budget, f"{share:.0%}", f"{speeds['planned'] / best:.2f}x"])
    header = ["mode", "GPU memory", "rows on GPU", "best plan over best layer-wise"]
    return [*table(header, rows), "", f"predicted, not measured: {SHAPE} in {FORMAT} on {MACHINE}"]


if __name__ == "__main__":
    print("\n".join([*measured(), "", *predicted()]))
