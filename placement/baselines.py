"""Layer-wise offload as plans: what the engine is compared with, sharing every line but the sparse machinery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from placement.cost import ModelSizes, account
from placement.formulate import split_layer
from placement.plan import Budgets, Digests, LayerPlan, Placement, Plan, Residence, Segment, Unit
from placement.planner import finish_plan
from profiler.hardware import Hardware


def everything_on_cpu(*, digests: Digests, sizes: ModelSizes, hardware: Hardware, budgets: Budgets) -> Plan:
    """One unit: all in RAM, all computed by the CPU.

    Raises:
        UserError: it does not fit in RAM.
    """
    placement = _placement(sizes, budgets, [split_layer(sizes.n_rows, 0, "cpu")] * sizes.n_layers)
    return _finish(placement, "everything-on-cpu", digests, sizes, hardware)


def first_layers_on_gpu(*, digests: Digests, sizes: ModelSizes, hardware: Hardware, budgets: Budgets) -> Plan:
    """The first k layers whole on the GPU (attention, FFN, KV pages), as many as fit; the rest on the CPU.

    The head and then the embeddings go to the GPU where they still fit. The name says k.

    Raises:
        UserError: the rest does not fit in RAM.
    """
    on_gpu = split_layer(sizes.n_rows, sizes.n_rows, "gpu")
    on_cpu = split_layer(sizes.n_rows, 0, "cpu")
    count, placement = 0, _placement(sizes, budgets, [on_cpu] * sizes.n_layers)
    for tried in range(1, sizes.n_layers + 1):
        more = _placement(sizes, budgets, [on_gpu] * tried + [on_cpu] * (sizes.n_layers - tried))
        if not _fits(sizes, more):
            break
        count, placement = tried, more
    return _finish(_with_ends(sizes, placement), f"first-{count}-layers-on-gpu", digests, sizes, hardware)


def attention_on_gpu(*, digests: Digests, sizes: ModelSizes, hardware: Hardware, budgets: Budgets) -> Plan:
    """Every attention with its KV pages on the GPU, every FFN on the CPU; head and embeddings where they still fit.

    Raises:
        UserError: the attention does not fit on the GPU, or the rest in RAM.
    """
    placement = _placement(sizes, budgets, [split_layer(sizes.n_rows, 0, "gpu")] * sizes.n_layers)
    return _finish(_with_ends(sizes, placement), "attention-on-gpu", digests, sizes, hardware)


def streamed(*, digests: Digests, sizes: ModelSizes, hardware: Hardware, budgets: Budgets) -> Plan:
    """Attention on the GPU, and every layer's rows copied there from RAM for each token.

    Raises:
        UserError: the attention and one layer's rows do not fit on the GPU, or the rest in RAM.
    """
    return _all_elsewhere("ram", "streamed", digests, sizes, hardware, budgets)


def reloaded(*, digests: Digests, sizes: ModelSizes, hardware: Hardware, budgets: Budgets) -> Plan:
    """Every layer's rows read from flash for each token: by the GPU where there is one, else by the CPU (naive reload).

    Raises:
        UserError: no figures of a drive; or what is beside the rows does not fit.
    """
    return _all_elsewhere("flash", "reloaded", digests, sizes, hardware, budgets)


def _all_elsewhere(
    memory: Residence, name: str, digests: Digests, sizes: ModelSizes, hardware: Hardware, budgets: Budgets
) -> Plan:
    unit: Unit = "gpu" if budgets.vram else "cpu"
    layer = LayerPlan(unit, (Segment(0, sizes.n_rows, memory, unit),))
    placement = _placement(sizes, budgets, [layer] * sizes.n_layers)
    return _finish(_with_ends(sizes, placement), name, digests, sizes, hardware)


def _placement(sizes: ModelSizes, budgets: Budgets, layers: Sequence[LayerPlan]) -> Placement:
    return Placement(
        mode="dense",
        sparse=False,
        budgets=budgets,
        n_rows=sizes.n_rows,
        embeddings="cpu",
        head="cpu",
        layers=tuple(layers),
    )


def _fits(sizes: ModelSizes, placement: Placement) -> bool:
    return sum(account(sizes, placement)["gpu"].values()) <= placement.budgets.vram


def _with_ends(sizes: ModelSizes, placement: Placement) -> Placement:
    """The placement with the head, then the embeddings, on the GPU where they fit; one table moves as one."""
    choices = [replace(placement, head="gpu", embeddings="gpu")]
    if not sizes.tied:
        choices.append(replace(placement, head="gpu"))
    return next((choice for choice in choices if _fits(sizes, choice)), placement)


def _finish(placement: Placement, name: str, digests: Digests, sizes: ModelSizes, hardware: Hardware) -> Plan:
    return finish_plan(placement, name=name, digests=digests, sizes=sizes, frequencies=None, hardware=hardware)
