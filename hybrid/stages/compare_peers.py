"""Other programs that take part in a comparison, layer-wise: llama.cpp, and transformers with accelerate."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.checkpoint.reader import Checkpoint
from hybrid.extras import install_command
from hybrid.runtime.memory import available_memory
from hybrid.stages.compare_contenders import Absent, Contender, Setup
from hybrid.stages.peers.gguf_sizes import GgufSizes, read_gguf_sizes
from profiler.artifacts import UserError, format_size
from profiler.formats import is_quantised

ACCELERATE, LLAMA = "accelerate", "llama.cpp"
WORKERS = {ACCELERATE: "hybrid.stages.peers.accelerate_worker", LLAMA: "hybrid.stages.peers.llama_worker"}
PACKAGES = {ACCELERATE: ("accelerate", "transformers"), LLAMA: ("llama_cpp",)}
ALIKE = 0.05  # of its bytes, by which a GGUF file of the same bits may differ
F16 = 2
# llama.cpp takes a model's activation from its architecture; a GGUF file cannot say otherwise.
OF_ARCHITECTURES = ("silu", "relu2")
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True)
class _Form:
    """One way to run a program. name: as tables call it; llama.cpp's computes FFNs on the CPU with `ffn_on_cpu`."""

    program: str
    name: str
    ffn_on_cpu: bool = False


CPU_FORMS = (_Form(ACCELERATE, "transformers, on the CPU alone"), _Form(LLAMA, "llama.cpp, on the CPU alone"))
GPU_FORMS = (
    _Form(ACCELERATE, "accelerate, device_map"),
    _Form(LLAMA, "llama.cpp, -ngl"),
    _Form(LLAMA, "llama.cpp, FFN on the CPU", ffn_on_cpu=True),
)


def peer_contenders(setup: Setup) -> list[Contender | Absent]:
    """Every form of the other programs that this machine has room for, and why others are not measured.

    Beside a stand-in they compute on the CPU alone: it is no device that they know.

    Raises:
        UserError: the checkpoint or the GGUF file cannot be read, or is of another model.
    """
    forms = GPU_FORMS if setup.device == "cuda" else CPU_FORMS
    found: list[Contender | Absent] = []
    for program, make in ((ACCELERATE, _accelerate), (LLAMA, _llama)):
        own = [form for form in forms if form.program == program]
        problem = _problem(setup, program)
        python = None if problem else _interpreter(program, setup.settings.python)
        if python is None:
            missing = (
                problem
                or f"{' and '.join(PACKAGES[program])} cannot be imported; install with: {install_command('peers')}"
            )
            found += [Absent(form.name, "layer-wise", program, missing) for form in own]
        else:
            found += make(setup, own, python)
    return found


def _problem(setup: Setup, program: str) -> str | None:
    """Why a program cannot be compared with this model, if so."""
    settings, weight_format = setup.settings, setup.files.weight_format
    if program == ACCELERATE and is_quantised(weight_format):
        return f"it computes in 16 bits, and this model's weights are in {weight_format}"
    if program == ACCELERATE and settings.checkpoint is None:
        return "it needs the checkpoint that the model was packed from: --checkpoint DIR"
    if program == LLAMA and settings.gguf is None:
        return f"it needs the same model as a GGUF file in {weight_format}: --gguf FILE"
    if settings.slowdown:
        return "units are slowed here, and it would not be"
    return None


def _interpreter(program: str, preferred: str | None) -> str | None:
    """An interpreter that has a program's packages: the one that is preferred, else this one; None without either.

    Raises:
        UserError: the preferred one cannot be started.
    """
    if preferred is not None:
        found = [f"importlib.util.find_spec({name!r})" for name in PACKAGES[program]]
        code = f"import importlib.util, sys; sys.exit(not all([{', '.join(found)}]))"
        try:
            if subprocess.run([preferred, "-c", code], capture_output=True, timeout=60).returncode == 0:
                return preferred
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(f"{preferred} is no Python that can be run ({error}); mend --peer-python") from error
    here = all(importlib.util.find_spec(name) for name in PACKAGES[program])
    return sys.executable if here else None


def _kv_bytes(setup: Setup) -> int:
    """Bytes of one layer's keys and values at the full context, in f16, which both programs keep them in."""
    return 2 * setup.files.spec.kv_size * F16 * setup.context


def _accelerate(setup: Setup, forms: Sequence[_Form], python: str) -> list[Contender | Absent]:
    path, spec = setup.settings.checkpoint, setup.files.spec
    assert path is not None
    if Checkpoint.open(path).spec != spec:
        raise UserError(
            f"{path} is of another model than {setup.files.path}; give --checkpoint what that was packed from"
        )
    size = sum(file.stat().st_size for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
    dtype = {"bf16": "bfloat16", "f16": "float16"}[setup.files.weight_format]
    common = {"path": str(path), "threads": setup.threads, "context": setup.context, "dtype": dtype}
    if setup.budgets is None or setup.device != "cuda":
        return [_peer(form, python, common, {**OFFLINE, **WITHOUT_GPU}, ram=size) for form in forms]
    room = setup.budgets.vram - setup.gpu_context - spec.n_layers * _kv_bytes(setup)
    if room <= 0:
        reason = (
            f"keys and values of {setup.context} tokens, and what a process takes of the GPU by being there, leave "
            "nothing of the budget; give a larger one, or a smaller --context"
        )
        return [Absent(form.name, "layer-wise", ACCELERATE, reason) for form in forms]
    arguments = {**common, "vram": room, "ram": available_memory()}
    return [
        _peer(form, python, arguments, OFFLINE, vram=setup.budgets.vram, ram=size, lowered_by=("vram", 1))
        for form in forms
    ]


def _llama(setup: Setup, forms: Sequence[_Form], python: str) -> list[Contender | Absent]:
    path, files = setup.settings.gguf, setup.files
    assert path is not None
    sizes = read_gguf_sizes(path)
    if len(sizes.layers) != files.spec.n_layers:
        raise UserError(
            f"{path} has {len(sizes.layers)} layers and {files.path} {files.spec.n_layers}: give --gguf the same model"
        )
    whole = sum(record.size for record in files.manifest.files.values())
    other = f"{path.name} has {format_size(sizes.total)}, the model directory {format_size(whole)}: other bits?"
    unlike = abs(sizes.total / whole - 1) > ALIKE
    common = {"path": str(path), "threads": setup.threads, "context": -(-setup.context // 256) * 256}
    activation = files.spec.activation
    more: dict[str, Any] = {"ram": sizes.total, "note": other if unlike else None}
    if activation not in OF_ARCHITECTURES:
        more["unscored"] = f"{LLAMA} computes this architecture with its own activation, not with {activation}"
    if setup.budgets is None or setup.device != "cuda":
        return [_peer(form, python, {**common, "gpu_layers": 0}, WITHOUT_GPU, **more) for form in forms]
    budget, kv_bytes = setup.budgets.vram, _kv_bytes(setup)
    return [_on_gpu(form, python, sizes, common, budget, kv_bytes, more) for form in forms]


def _on_gpu(
    form: _Form, python: str, sizes: GgufSizes, common: dict[str, Any], budget: int, kv_bytes: int, more: dict[str, Any]
) -> Contender | Absent:
    """llama.cpp with as many layers on the GPU as fit by their sizes, or with all of them but their FFNs."""
    if form.ffn_on_cpu:
        needed = sizes.without_ffn(kv_bytes)
        if needed > budget:
            reason = f"attention, head and KV pages take {format_size(needed)}, and the budget is {format_size(budget)}"
            return Absent(form.name, "layer-wise", LLAMA, reason)
        arguments = {**common, "gpu_layers": len(sizes.layers) + 1, "ffn_on_cpu": True}
        return _peer(form, python, arguments, {}, vram=budget, **more)
    layers = sizes.layers_within(budget, kv_bytes)
    if layers == 0:
        return Absent(form.name, "layer-wise", LLAMA, f"no layer fits the budget of {format_size(budget)}")
    labelled = _Form(form.program, f"{form.name} {{gpu_layers}}")
    lowered_by = ("gpu_layers", min(sizes.layers) + kv_bytes)
    return _peer(labelled, python, {**common, "gpu_layers": layers}, {}, vram=budget, lowered_by=lowered_by, **more)


def _peer(form: _Form, python: str, arguments: dict[str, Any], environment: dict[str, str], **more: Any) -> Contender:
    return Contender(
        form.name,
        "layer-wise",
        form.program,
        WORKERS[form.program],
        arguments,
        python=python,
        environment=environment,
        **more,
    )
