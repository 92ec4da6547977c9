"""The sections of a report that show what was counted, chosen and placed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hybrid.stages.report_choices import PLACES, bytes_placed, chosen_sizes, rows_by_place, rows_placed, tried
from hybrid.stages.report_data import Activity, Placed, Predictors, ReportData
from hybrid.stages.report_drawing import Picture
from hybrid.stages.report_parts import NOTHING, Missing, Section, Table, count, plain, share
from hybrid.stages.report_pictures import (
    RAREST,
    SPARSITY,
    heat_map,
    hotness_by_layer,
    hotness_held_out,
    hotness_of_domain,
    sparsity,
)
from placement.plan import PURPOSES, Memory
from profiler.artifacts import format_size
from profiler.skew import SHARES, Given

MOST_TRIED = 40  # predictors of one layer


def hotness(data: ReportData) -> Section:
    """Whether few neurons give most activations, and do so on text that did not choose them."""
    title, anchor = "How few neurons do most of the work", "hotness"
    text = (
        "Keeping the hottest neurons in fast memory pays where few of them give most of the activations, and where "
        "those that were hot on one text are hot on the next. An activation is one neuron that is active for one token."
    )
    found = data.activity
    if isinstance(found, Missing):
        return Section(anchor, title, text, missing=(found,))
    source = f"{count(found.tokens)} tokens, {found.source}"
    halved = found.whole.held_out is not None
    how = (
        "The neurons were chosen on one half of the documents and their activations counted on the other; mean of both "
        "directions."
        if halved
        else "The neurons were chosen on the very text on which their activations were counted."
    )
    pictures = [
        Picture(
            "hotness-by-layer",
            anchor,
            f"Share of a layer's activations that its hottest neurons give, a line for each layer. {how} The dotted "
            f"line: all neurons equally often active. {source}.",
            lambda: hotness_by_layer(found),
        ),
        Picture(
            "hotness-held-out",
            anchor,
            "The same, mean over layers, with the hottest few percent spread out. The further the dashed line lies "
            f"above the solid one, the less hotness on one text says of another. Shaded: between all layers. {source}.",
            lambda: hotness_held_out(found),
        ),
    ]
    for n, domain in enumerate(found.domains if len(found.domains) > 1 else ()):
        pictures.append(
            Picture(
                f"hotness-of-domain-{n + 1}",
                anchor,
                f"Activations on {domain.name} ({count(domain.tokens)} tokens) that neurons give which were chosen on "
                f"it, on the other half of all text, or on another kind of text; mean over layers. {found.source}.",
                partial(hotness_of_domain, found, domain),
            )
        )
    command = data.profiling
    missing = () if halved else (Missing("this profile did not count the halves of its text apart", command),)
    return Section(anchor, title, text, missing, pictures=tuple(pictures), tables=_hotness_tables(found, source))


def activity(data: ReportData) -> Section:
    """How often each neuron is active, and how many of them a token uses."""
    title, anchor = "How often neurons are active", "frequency"
    text = "A neuron is active for a token when its activation is not zero; only active neurons add to the output."
    found = data.activity
    if isinstance(found, Missing):
        return Section(anchor, title, text, missing=(found,))
    source = f"{count(found.tokens)} tokens, {found.source}"
    bins = found.heat.shape[1]
    pictures = (
        Picture(
            "heat-map",
            anchor,
            f"Each row is a layer of {count(found.neurons)} neurons, hottest left, in {bins} bins; the colour is the "
            f"mean share of tokens for which a bin's neurons are active ({share(RAREST)} and less is darkest). Empty: "
            f"never active. {source}.",
            lambda: heat_map(found),
        ),
        Picture(
            "sparsity",
            anchor,
            "Mean share of a layer's neurons that are active for a token, that its predictor names, and that are "
            f"active for at least one of 4 and of 16 tokens in a row: what a batch of that size has to read. {source}.",
            lambda: sparsity(found),
        ),
    )
    rows = [
        [str(i), *(share(float(values[i])) for values in found.sparsity.values()), share(float(found.silent[i]))]
        for i in range(len(found.layers))
    ]
    header = ["layer", *(SPARSITY[name] for name in found.sparsity), "never active"]
    missing: tuple[Missing, ...] = ()
    if "named" not in found.sparsity:
        missing = (Missing("this profile has no predictors, so nothing was named", data.profiling),)
    table = Table(f"Share of the layer's neurons. {source}.", header, rows)
    return Section(anchor, title, text, missing, pictures=pictures, tables=(table,))


def predictors(data: ReportData) -> Section:
    """What was tried for each layer, and what was chosen."""
    title, anchor = "Predictors: how good at what size", "predictors"
    text = (
        "A predictor names the neurons that a token will activate before they are computed. For each layer several "
        "were tried on tokens that none was trained on, and one was chosen."
    )
    found = data.predictors
    if isinstance(found, Missing):
        return Section(anchor, title, text, missing=(found,))
    trials = [layer[:MOST_TRIED] for layer in found.found.trials]
    tokens = count(min(quality.tokens for quality in found.found.quality))
    source = f"{tokens} held-out tokens a layer, {found.source}"
    joined = "Sizes of one family and layer are joined; a ring marks the chosen one"
    pictures: tuple[Picture, ...] = ()
    if any(trials):
        pictures = (
            Picture(
                "predictors-mass",
                anchor,
                "Share of the summed |activation| carried by the neurons ranked highest, as many as are truly active. "
                f"{joined}. {source}.",
                lambda: tried(
                    trials, "mass_at_active", "Recall of mass, naming as many as are active", "share of activation mass"
                ),
            ),
            Picture(
                "predictors-named",
                anchor,
                "Share of the neurons that have to be named to keep the wanted share of mass: lower is better. "
                f"{joined}. {source}.",
                lambda: tried(trials, "named_at_keep", "Neurons named to keep the mass", "share of the neurons"),
            ),
            Picture(
                "predictors-bytes",
                anchor,
                "Bytes that one token reads of a layer: the predictor, the gates of named rows, and the rest of those "
                "that are active too; lower is better. At the left: no predictor, all gates computed. "
                f"{joined}. {source}.",
                lambda: tried(trials, "bytes_per_token", "What a token then reads of a layer", "bytes"),
            ),
        )
    sizes = [(predictor.family, predictor.nbytes) for predictor in found.found.layers]
    pictures += (
        Picture(
            "predictors-chosen",
            anchor,
            f"Bytes of the predictor that each layer has, {format_size(found.found.nbytes)} together. {found.source}.",
            lambda: chosen_sizes(sizes),
        ),
    )
    missing = () if any(trials) else (Missing("nothing is recorded of what was tried", data.profiling),)
    return Section(anchor, title, text, missing, pictures=pictures, tables=_predictor_tables(found, trials, source))


def placement(data: ReportData) -> Section:
    """Where a plan puts rows and bytes."""
    title, anchor = "Where everything is", "plan"
    text = "A plan says where each row (a neuron's weights) lives, hottest first, within budgets of memory."
    found = data.placed
    if isinstance(found, Missing):
        return Section(anchor, title, text, missing=(found,))
    plan = found.plan
    pictures = (
        Picture(
            "plan-rows",
            anchor,
            f"Rows of each layer on the GPU, in RAM and on flash, of {count(plan.n_rows)} a layer, hottest left. "
            f"{found.source}, for {plan.mode} mode on {plain(plan.hardware)}.",
            lambda: rows_placed(plan),
        ),
        Picture(
            "plan-bytes",
            anchor,
            f"Bytes in each memory by purpose, at a context of {count(plan.budgets.context)} tokens; dashed: the "
            f"budget, where there is one. {found.source}.",
            lambda: bytes_placed(plan),
        ),
    )
    warnings: tuple[str, ...] = () if found.warning is None else (f"{found.source}: {found.warning}; plan anew.",)
    if plan.solver is not None:
        warnings += tuple(f"solver: {plain(warning, 200)}" for warning in plan.solver.warnings[:5])
    return Section(anchor, title, text, warnings=warnings, pictures=pictures, tables=_plan_tables(found))


def _hotness_tables(found: Activity, source: str) -> tuple[Table, ...]:
    at = [min(range(len(found.shares)), key=lambda i: abs(found.shares[i] - wanted)) for wanted in SHARES]

    def row(name: str, values: Given) -> list[str]:
        return [name, *(share(values[i]) for i in at)]

    rows = [] if found.whole.held_out is None else [row("all text, chosen on its other half", found.whole.held_out)]
    rows.append(row("all text, chosen on itself", found.whole.in_sample))
    for domain in found.domains if len(found.domains) > 1 else ():
        if domain.curve.held_out is not None:
            rows.append(row(f"{domain.name}, chosen on the other half of all text", domain.curve.held_out))
        rows.append(row(f"{domain.name}, chosen on itself", domain.curve.in_sample))
        rows += [row(f"{domain.name}, chosen on {other}", values) for other, values in domain.chosen_on]
    header = ["activations from the hottest", *(f"{100 * wanted:.0f} %" for wanted in SHARES)]
    return (Table(f"Share of activations, mean over layers. {source}.", header, rows),)


def _predictor_tables(found: Predictors, trials: Sequence[Sequence[object]], source: str) -> tuple[Table, ...]:
    header = [
        "layer",
        "family",
        "rank",
        "format",
        "size",
        "active",
        "named",
        "recall",
        "precision",
        "mass kept",
        "reads",
    ]
    rows = []
    for i, (predictor, quality) in enumerate(zip(found.found.layers, found.found.quality, strict=True)):
        size = format_size(predictor.nbytes)
        formats = ", ".join(dict.fromkeys(predictor.weight_formats)) or NOTHING
        what = [predictor.family, str(predictor.rank) if predictor.rank else NOTHING, formats, size]
        shares = (quality.active, quality.named, quality.recall, quality.precision, quality.mass_recall)
        rows.append([str(i), *what, *map(share, shares), predictor.reads.replace("_", " ")])
    total = format_size(found.found.nbytes)
    return (Table(f"Chosen for each layer, {total} together. {source}.", header, rows),)


def _plan_tables(found: Placed) -> tuple[Table, ...]:
    plan = found.plan
    memories: tuple[Memory, ...] = ("gpu", "ram")
    sizes = [[purpose, *(format_size(plan.bytes[memory][purpose]) for memory in memories)] for purpose in PURPOSES]
    sizes.append(["together", *(format_size(plan.total_bytes(memory)) for memory in memories)])
    budgets = [plan.budgets.vram, plan.budgets.ram]
    sizes.append(["budget", *("not limited" if budget is None else format_size(budget) for budget in budgets)])
    used = rows_by_place(plan)
    places = [place for place in PLACES if any(used[place])]
    rows = [[str(i), *(count(used[place][i]) for place in places)] for i in range(len(plan.layers))]
    return (
        Table(f"Bytes by purpose. {found.source}.", ["", "GPU", "RAM"], sizes),
        Table(f"Rows of each layer. {found.source}.", ["layer", *places], rows),
    )
