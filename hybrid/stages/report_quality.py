"""The sections of a report that say what is lost: what the model is, evaluations, thresholds."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid.stages.report_data import Calibrated, Evaluated, ReportData
from hybrid.stages.report_drawing import Picture
from hybrid.stages.report_parts import NOTHING, Missing, Section, Table, count, plain, share
from hybrid.stages.report_pictures import by_layer, costs
from hybrid.store.evaluation_file import REFERENCE, ModeEvaluation, headline
from profiler.artifacts import format_size
from profiler.quality import Quality
from profiler.thresholds import loss_label

MOST_MODES = 8


def model(data: ReportData) -> Section:
    """What the model is, and what is lost in which mode."""
    found = data.model
    spec = found.spec
    heads = f"{spec.n_heads} heads, {spec.n_kv_heads} for keys and values"
    facts = [
        ["model", f"{plain(spec.family)}, {found.parameters / 1e6:,.1f} M parameters"],
        [
            "layers",
            f"{spec.n_layers} of {count(spec.n_neurons)} neurons, {'gated ' if spec.gated else ''}{spec.activation}",
        ],
        ["width", f"{count(spec.hidden_size)}; {heads}; context {count(spec.max_positions)} tokens"],
        ["weights", f"{found.weight_format}, {found.bits_per_weight:.2f} bits a weight, scales and padding included"],
        ["size", ", ".join(f"{part} {format_size(size)}" for part, size in found.bytes.items())],
    ]
    if not isinstance(data.activity, Missing):
        kinds = ", ".join(f"{domain.name} {count(domain.tokens)}" for domain in data.activity.domains)
        told = f"{count(data.activity.tokens)} tokens" + (f" ({kinds})" if kinds else "")
        facts.append(["profile", f"{data.activity.source}: {told}"])
    if not isinstance(data.predictors, Missing):
        facts.append(["predictors", f"{data.predictors.source}: {format_size(data.predictors.found.nbytes)}"])
    facts.append(["checkpoint", f"sha256 {plain(found.source_digest, 16)}"])
    return Section(
        "model",
        "The model, and what is lost",
        "",
        warnings=tuple(plain(problem, 300) for problem in data.problems),
        tables=(
            Table("What it is, by model.json and the files' sizes.", [], facts, words=True),
            Table("What each mode loses.", ["mode", "what is computed", "what it costs"], _losses(data), words=True),
        ),
    )


def quality(data: ReportData) -> Section:
    """Perplexity, divergence, agreement and dropped mass of the modes, as they were evaluated."""
    title, anchor = "What it costs, measured", "quality"
    text = (
        "Every mode is compared with dense mode, token by token, on text that should be neither profiled nor "
        "calibrated on. The interval comes from drawing documents with replacement: it says how far other text "
        "of the kind may differ."
    )
    if isinstance(data.evaluations, Missing):
        return Section(anchor, title, text, missing=(data.evaluations,))
    modes = [(e, m) for e in data.evaluations for m in e.evaluation.modes[:MOST_MODES]]
    several = len(data.evaluations) > 1
    names = [_name(e, m, several) for e, m in modes]
    lossy = [(name, e, m) for name, (e, m) in zip(names, modes, strict=True) if m.mode != REFERENCE]
    sources = ", ".join(_source(e) for e in data.evaluations)
    pictures = []
    if lossy:
        ratios = [(m.quality.ratio, *_ends(m.quality)) for _, _, m in lossy]
        pictures.append(
            Picture(
                "quality-perplexity",
                anchor,
                f"What a mode adds to dense perplexity (dot) and its interval (bar). {sources}.",
                lambda: costs([name for name, _, _ in lossy], ratios),
            )
        )
    measured = [(name, m) for name, _, m in lossy if any(layer.dropped_mass for layer in m.layers)]
    if measured:
        tokens = ", ".join(f"{count(e.evaluation.layer_tokens)} tokens, {e.source}" for e in data.evaluations)
        pictures.append(
            Picture(
                "quality-dropped",
                anchor,
                f"Share of a layer's summed |activation| that was not computed; modes that drop nothing are left "
                f"out. {tokens}.",
                lambda: by_layer(
                    "Activation mass dropped, by layer",
                    "share of the mass",
                    [(name, [layer.dropped_mass for layer in m.layers]) for name, m in measured],
                ),
            )
        )
    header = [
        "mode",
        "perplexity",
        "over dense",
        "interval",
        "KL (nats)",
        "KL, 99th percentile",
        "same top token",
        "tokens",
    ]
    rows = [_quality_row(name, m) for name, (_, m) in zip(names, modes, strict=True)]
    tables = [Table(f"{sources}.", header, rows)]
    tables += [_layers_table(name, m) for name, m in measured]
    stale = [f"{e.source} is stale: {plain(e.stale, 200)}; evaluate anew." for e in data.evaluations if e.stale]
    notes = [plain(note, 300) for e in data.evaluations for note in e.evaluation.notes[:5]]
    return Section(anchor, title, text, warnings=(*stale, *notes), pictures=tuple(pictures), tables=tuple(tables))


def thresholds(data: ReportData) -> Section:
    """Calibrated cutoffs of threshold mode, and their loss."""
    title, anchor = "Thresholds", "thresholds"
    text = (
        "Threshold mode counts activations up to a layer's cutoff as zero, so that models without exact zeros become "
        "sparse. It is lossy, and used only where it is asked for."
    )
    found = data.thresholds
    if isinstance(found, Missing):
        return Section(anchor, title, text, missing=(found,))
    lines = [(c.name, [layer.active for layer in c.thresholds.layers]) for c in found]
    tokens = ", ".join(f"{count(c.thresholds.heldout_tokens)} held-out tokens, {c.source}" for c in found)
    picture = Picture(
        "thresholds",
        anchor,
        f"Share of each layer's neurons that stay active above its cutoff. {tokens}.",
        lambda: by_layer("Neurons above the cutoff, by layer", "share of the layer's neurons", lines),
    )
    rows = [[c.name, *_asked(c), share(c.thresholds.active), _kept(c), _lost(data, c)] for c in found]
    header = ["name", "asked for", "stay active", "least mass kept", "what it costs"]
    return Section(anchor, title, text, pictures=(picture,), tables=(Table(f"{tokens}.", header, rows, words=True),))


def _losses(data: ReportData) -> list[list[str]]:
    rows = [["dense", "everything", "nothing: the reference"]]
    if data.model.spec.has_exact_zeros:
        rows.append(["exact", "all gates, then active neurons only", "nothing: what is left out is exactly zero"])
    if not isinstance(data.predictors, Missing):
        rows.append(["predicted", "the neurons that predictors name", _measured(data, "predicted")])
    for calibrated in () if isinstance(data.thresholds, Missing) else data.thresholds:
        rows.append(["threshold", f"activations above {calibrated.source}", _lost(data, calibrated)])
    return rows


def _measured(data: ReportData, mode: str) -> str:
    evaluations = () if isinstance(data.evaluations, Missing) else data.evaluations
    for found in evaluations:
        for one in found.evaluation.modes:
            if one.mode == mode and found.stale is None:
                return plain(f"{headline(one.quality)}, {found.source}", 160)
    return f"not measured; measure it with: {data.evaluating}"


def _source(found: Evaluated) -> str:
    text = found.evaluation.text
    paths = ", ".join(plain(path, 80) for path in text.paths[:3])
    return f"{count(text.tokens)} tokens in {count(text.documents)} documents of {paths}, {found.source}"


def _name(found: Evaluated, mode: ModeEvaluation, several: bool) -> str:
    return plain(mode.mode, 20) + (f" ({plain(found.evaluation.name, 20)})" if several else "")


def _ends(found: Quality) -> tuple[float | None, float | None]:
    return (None, None) if found.interval is None else (found.interval.low, found.interval.high)


def _quality_row(name: str, mode: ModeEvaluation) -> list[str]:
    found = mode.quality
    low, high = _ends(found)
    ends = NOTHING if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
    perplexity = f"{found.perplexity:.4f}" if found.perplexity < 1e6 else f"{found.perplexity:.4g}"
    divergences = (f"{found.divergence:.3g}", f"{found.divergence_p99:.3g}")
    return [name, perplexity, _signed(found.ratio), ends, *divergences, share(found.agreement), count(found.tokens)]


def _signed(ratio: float) -> str:
    over = 100 * (ratio - 1)
    return f"{over:+.3f} %" if abs(over) < 1e6 else f"{over:+.3g} %"


def _layers_table(name: str, mode: ModeEvaluation) -> Table:
    rows: Sequence[Sequence[str]] = [
        [
            str(i),
            *map(share, (layer.active, layer.named, layer.recall, layer.precision, layer.mass_recall)),
            share(layer.dropped_mass),
        ]
        for i, layer in enumerate(mode.layers)
    ]
    header = ["layer", "active", "named", "recall", "precision", "mass kept", "mass dropped"]
    return Table(f"{name} mode by layer, on {count(mode.layers[0].tokens)} tokens.", header, rows)


def _asked(found: Calibrated) -> list[str]:
    wanted = found.thresholds
    if wanted.budget is not None:
        return [f"at most {100 * wanted.budget:.3g} % of perplexity"]
    return [NOTHING if wanted.sparsity is None else f"{share(wanted.sparsity)} inactive"]


def _kept(found: Calibrated) -> str:
    return share(min(layer.mass_kept for layer in found.thresholds.layers))


def _lost(data: ReportData, found: Calibrated) -> str:
    return plain(loss_label(found.thresholds.loss, data.path), 200)
