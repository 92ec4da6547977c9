"""What a user chooses of how a model runs, held against what there is. No torch, since plans are made with it too."""

from __future__ import annotations

from typing import get_args

from hybrid.model.pages import KV_FORMATS
from hybrid.store.files import ModelFiles
from placement.plan import Mode, Plan
from profiler.artifacts import UserError

MODES: tuple[Mode, ...] = get_args(Mode)
DEFAULT_CONTEXT = 4096


def known_mode(mode: str) -> Mode:
    """The mode of that name.

    Raises:
        UserError: there is none.
    """
    for known in MODES:
        if mode == known:
            return known
    raise UserError(f"mode {mode!r} is not known; modes are {', '.join(MODES)}")


def check_kv_format(kv_format: str) -> None:
    """Refuse what is no format of keys and values."""
    if kv_format not in KV_FORMATS:
        raise UserError(f"KV format {kv_format!r} is not known; formats are {', '.join(KV_FORMATS)}")


def check_same_model(files: ModelFiles, plan: Plan) -> None:
    """Refuse a plan that was made for another model, another packing or another row order."""
    mend = f"make one with: hybrid plan {files.path} --vram SIZE"
    if plan.digests.pack != files.pack_digest:
        raise UserError(f"the plan was made for another model than {files.path}; {mend}")
    if (len(plan.layers), plan.n_rows) != (files.spec.n_layers, files.spec.n_neurons):
        sizes = f"{len(plan.layers)} layers of {plan.n_rows} neurons"
        raise UserError(f"the plan is damaged: it is of {sizes}, which are not those of {files.path}; {mend}")
    if plan.digests.row_order != files.row_order_digest():
        raise UserError(f"the rows of {files.path} were profiled anew since the plan was made; {mend}")


def choose_context(wanted: int | None, planned: int | None, trained: int) -> int:
    """Tokens of one sequence: those asked for, else those planned for, else the model's own up to 4096.

    Raises:
        UserError: out of the range that the model was trained for, or more than was planned for.
    """
    context = wanted or planned or min(trained, DEFAULT_CONTEXT)
    if not 2 <= context <= trained:
        raise UserError(f"a context of {context} tokens is out of range: the model was trained for 2 to {trained}")
    if planned is not None and context > planned:
        raise UserError(f"the plan has room for {planned} tokens of context, not {context}; plan anew with --context")
    return context
