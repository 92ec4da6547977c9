"""What bytes alone allow: the speed that no step of a plan can pass, by the bandwidths of the same run."""

from __future__ import annotations

from dataclasses import replace

from hybrid.stages.compare_contenders import CPU_ALONE, Settings
from hybrid.stages.finding import offered_modes
from hybrid.stages.plan import PlanSettings, baseline_plans, read_request, solve
from hybrid.stages.plan_defaults import resolve
from hybrid.store.files import ModelFiles
from placement.plan import Budgets
from placement.simulate import byte_bound


def bounds(files: ModelFiles, settings: Settings, gpu: float, cpu: float) -> dict[str, float]:
    """Tokens per second by the names that `hybrid compare` gives this engine's contenders.

    gpu, cpu: bytes per second of each memory. The text is as long as it is halfway through decoding.
    """
    assert settings.vram is not None and settings.context is not None
    given = resolve(None, settings.device or "cuda", settings.vram, None)
    context = settings.prompt_tokens + settings.tokens // 2
    found = {}
    for mode in offered_modes(files)[1:]:
        if mode == "threshold":
            continue
        wanted = PlanSettings(vram=settings.vram, context=settings.context, mode=mode, kv_format=settings.kv_format)
        request, plan = solve(files, wanted, given)
        seconds = byte_bound(request.sizes, request.frequencies, plan, gpu=gpu, cpu=cpu, context=context)
        found[f"{mode}, planned"] = 1 / seconds
    request, _ = read_request(files, PlanSettings(context=settings.context, mode="dense"), given)
    bare = replace(request.sizes, predictor_bytes=(0,) * request.sizes.n_layers)
    budgets = Budgets(settings.vram, None, settings.context)
    for name, plan in baseline_plans(files, budgets, settings.kv_format, given.hardware.context).items():
        if not isinstance(plan, str):
            found[name] = 1 / byte_bound(bare, None, plan, gpu=gpu, cpu=cpu, context=context)
    assert CPU_ALONE in found, "memory of the host is not limited here"
    return found
