"""Measure a packed and profiled model on this machine's GPU: `hybrid compare` at several budgets, JSON after every row.

python scripts/gpu_measure.py DIR --text FILE --out measure.json
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from hybrid import reports
from hybrid.stages.compare import Settings, compare
from hybrid.stages.inspect import inspect
from hybrid.stages.plan import PlanSettings, plan
from profiler.artifacts import UserError, format_size, write_atomic

SHARES = (0.5, 0.75, 1.0)  # of the model's size; dense parts must fit, so the smallest share depends on the shape


def machine(device: str) -> dict[str, str]:
    """What the figures were measured on."""
    accelerator = torch.cuda.get_device_name() if device == "cuda" else "stand-in in host memory"
    return {"gpu": accelerator, "cpu": platform.processor() or platform.machine(), "torch": torch.__version__}


def main() -> None:
    """Plan and compare at each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--second-device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    size = sum(inspect(args.model).bytes.values())
    result = {"machine": machine(args.second_device), "model_bytes": size, "rows": []}
    for share in SHARES:
        vram = int(size * share)
        row: dict[str, object] = {"vram": vram, "share_of_model": share}
        try:
            report = plan(args.model, PlanSettings(vram=vram, context=args.context, name=f"share-{share:g}"))
            row["rows_on_gpu"] = [report.plan.gpu_rows(i) for i in range(len(report.plan.layers))]
            settings = Settings(
                plan=f"share-{share:g}", device=args.second_device, rounds=args.rounds, tokens=32, text_tokens=1000
            )
            comparison = compare(args.model, [args.text], settings)
            row["comparison"] = asdict(comparison)
            print(f"--vram {format_size(vram)}", *reports.comparison_lines(comparison), sep="\n", flush=True)
        except UserError as error:
            row["error"] = str(error)
            print(f"--vram {format_size(vram)}: {error}", flush=True)
        result["rows"].append(row)
        write_atomic(args.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
