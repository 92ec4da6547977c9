"""Reports as people read them: lines of plain text, tables that paste into Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.artifacts import format_size
from profiler.thresholds import loss_label

if TYPE_CHECKING:
    from hybrid.runtime.logprobs import TokenLogprob
    from hybrid.runtime.summary import RunSummary
    from hybrid.runtime.trace import Trace
    from hybrid.stages.budget import BudgetReport
    from hybrid.stages.calibrate import CalibrationReport
    from hybrid.stages.evaluate import EvaluationReport
    from hybrid.stages.inspect import InspectReport
    from hybrid.stages.pack import PackReport
    from hybrid.stages.profile_results import ProfileReport
    from hybrid.stages.report import ReportResult
    from hybrid.store.evaluation_file import ModeEvaluation
    from hybrid.tokenizer import Tokenizer
    from profiler.quality import Quality

FEW_LAYERS = 12  # that are shown without being asked for


def pack_lines(report: PackReport) -> list[str]:
    """What `hybrid pack` made."""
    size, peak = format_size(report.bytes), format_size(report.peak_memory)
    return [
        *report.notes,
        f"{report.destination}: {report.parameters / 1e6:,.1f} M parameters in {report.weight_format}, "
        f"{size} in {report.files} files, {report.seconds:.1f} s, peak memory {peak}",
        f"next: hybrid profile {report.destination} --text FILE",
    ]


def profile_lines(report: ProfileReport) -> list[str]:
    """What was counted and trained, by layer, and how far hotness holds on other text."""
    header = ["layer", "active", "80 % from"]
    if report.ranks:
        header += ["named", "recall", "precision", "mass kept"]
    rows = []
    for i, layer in enumerate(report.layers):
        row = [str(i), f"{layer.active:.1%}", f"{layer.hot_share:.0%}"]
        if quality := layer.quality:
            row += [f"{quality.named:.1%}", f"{quality.recall:.1%}", f"{quality.precision:.1%}"]
            row.append(f"{quality.mass_recall:.2%}")
        rows.append(row)
    removed = [f"removed what a killed run left: {path}" for path in report.removed]
    lines = [*removed, *table(header, rows), *skew_lines(report), ""]
    if report.clock is not None:
        clock = report.clock
        lines.append(
            f"forward passes {clock.forward:.1f} s, capture {clock.capture:.1f} s, naming {clock.naming:.1f} s, "
            f"training {clock.training:.1f} s"
        )
    size = format_size(report.predictor_bytes)
    ranks = ", ".join(map(str, report.ranks))
    predictors = f"predictors of rank {ranks}, {size}" if report.ranks else "no predictors"
    counted = f"{report.path}: profile {report.name}, {report.tokens:,} tokens counted"
    return [*lines, f"{counted}; {predictors}; rows reordered"]


def skew_lines(report: ProfileReport) -> list[str]:
    """What the hottest neurons of one text give on another: the assumption that placement rests on."""
    skew = report.skew
    if skew is None:
        return []

    def row(name: str, shares: Sequence[float | None]) -> list[str]:
        return [name, *("-" if share is None else f"{share:.1%}" for share in shares)]

    header = ["activations from the hottest", *(f"{share:.0%}" for share in skew.shares)]
    rows = [row("chosen on one half, on the other", skew.held_out), row("on what they were chosen on", skew.in_sample)]
    for domain in skew.domains if len(skew.domains) > 1 else ():
        rows.append(row(f"{domain.name}: chosen on the other half of all", domain.held_out))
        rows += [row(f"{domain.name}: chosen on {other}", shares) for other, shares in domain.chosen_on.items()]
    return ["", *table(header, rows)]


def calibration_lines(report: CalibrationReport) -> list[str]:
    """Each layer's cutoff and what it leaves of text that did not set it."""
    found = report.thresholds
    header = ["layer", "cutoff", "active", "mass kept"]
    rows = [
        [str(i), f"{layer.cutoff:.4g}", f"{layer.active:.1%}", f"{layer.mass_kept:.2%}"]
        for i, layer in enumerate(found.layers)
    ]
    return [
        *table(header, rows),
        "",
        f"{report.path}: set on {found.tokens:,} tokens, checked on {found.heldout_tokens:,} others; "
        f"{found.active:.1%} of the neurons stay active",
        loss_label(found.loss, report.path.parent.parent),
    ]


def budget_lines(report: BudgetReport) -> list[str]:
    """The settings that a search tried, what each kept and cost, and the layers at the one that was taken."""
    named = "named" if report.mode == "predicted" else "kept"
    tried = [
        [
            f"{setting.share:.2%}",
            f"{min(setting.masses):.2%}",
            f"{setting.ratio - 1:+.3%}",
            "" if setting.interval is None else f"{setting.interval.low - 1:+.3%} to {setting.interval.high - 1:+.3%}",
            "taken" if setting is report.search.found else "",
        ]
        for setting in report.search.tried
    ]
    layers = [
        [str(i), f"{q.active:.1%}", f"{q.named:.1%}", f"{q.recall:.1%}", f"{q.precision:.1%}", f"{q.mass_recall:.2%}"]
        for i, q in enumerate(report.layers)
    ]
    return [
        *table([named, "least mass", "perplexity", "95 % interval", ""], tried),
        "",
        *table(["layer", "active", named, "recall", "precision", "mass kept"], layers),
        "",
        f"{report.path}: {report.mode} mode within {report.search.budget:.3%} of dense perplexity on {report.tokens:,} "
        "tokens; measure it on other documents with hybrid eval",
    ]


def report_lines(result: ReportResult) -> list[str]:
    """What was written, and what the page could not show."""
    folder = f"; {len(result.png)} PNG files in {result.png[0].parent}" if result.png else ""
    commands = dict.fromkeys(missing.command for missing in result.missing)
    return [
        *(f"not shown yet, make it with: {command}" for command in commands),
        f"{result.path}: {result.pictures} pictures, {format_size(result.bytes)}{folder}",
    ]


def logprob_lines(logprobs: Iterable[TokenLogprob], tokenizer: Tokenizer) -> list[str]:
    """A token a line: its log probability, and those of the likeliest ones."""

    def shown(token_id: int, logprob: float) -> str:
        return f"{logprob:8.3f}  {tokenizer.token_bytes(token_id).decode(errors='replace')!r}"

    lines = []
    for token in logprobs:
        others = "".join(f"   {shown(*other).strip()}" for other in token.alternatives)
        lines.append(f"{shown(token.token_id, token.logprob)}{'   of' if others else ''}{others}")
    return lines


def run_lines(summary: RunSummary, first_token_seconds: float) -> list[str]:
    """How fast a run was, what it computed, and where its memory is."""
    rows = " + ".join(f"{count:,.0f} on the {unit}" for unit, count in summary.rows_per_token.items())
    speed = [
        f"{summary.tokens_per_second:.1f} tokens/s" if summary.tokens else "no token after the first to time",
        f"first token after {first_token_seconds * 1000:.0f} ms",
        summary.warning or f"{summary.mode} mode",
        f"rows computed per token: {rows}",
        f"{format_size(summary.bytes_per_token)} touched per token",
    ]
    if summary.flash_bytes:
        speed.append(f"{format_size(summary.flash_bytes)} of neurons left on flash, which page faults fetch")
    if (sides := summary.split_milliseconds) is not None:
        hidden = "" if summary.hidden_share is None else f", {summary.hidden_share:.0%} of the smaller side hidden"
        speed.append(
            f"split layers' neurons per token: {sides['near']:.2f} ms beside attention, {sides['far']:.2f} ms "
            f"elsewhere, {sides['waiting']:.2f} ms waited for those{hidden}"
        )
    host = summary.memory["cpu"]
    used = [f"cpu {format_size(host['mapped'])} of the model mapped, process {format_size(host['resident'])}"]
    if "gpu" in summary.memory:
        gpu = summary.memory["gpu"]
        parts = ", ".join(f"{purpose} {format_size(size)}" for purpose, size in gpu.items())
        used.append(f"gpu {format_size(sum(gpu.values()))}{_of_budget(summary)} ({parts})")
    warnings = [f"warning: {warning}" for warning in summary.vram_warnings]
    return ["; ".join(speed), "memory: " + "; ".join(used), *warnings]


def _of_budget(summary: RunSummary) -> str:
    """What the GPU's bytes are to be held against, and what the process takes where the driver tells it."""
    if summary.vram is None:
        return ""
    process = "" if summary.vram.process is None else f", the process takes {format_size(summary.vram.process)}"
    return f" of {format_size(summary.vram.budget)}{process}"


def trace_line(trace: Trace, path: Path) -> str:
    """How much was traced, and who shows it."""
    steps = ", ".join(f"{trace.traced[kind]:,} of {seen:,} {kind} steps" for kind, seen in trace.seen.items())
    size = format_size(path.stat().st_size)
    return f"trace: {steps} in {path}, {size}; open it in ui.perfetto.dev or chrome://tracing"


def inspect_lines(report: InspectReport) -> list[str]:
    """What a model directory holds."""
    spec, parts = report.spec, ", ".join(f"{part} {format_size(size)}" for part, size in report.bytes.items() if size)
    activation = spec.activation + (f" above {spec.activation_cutoff:g}" if spec.activation_cutoff else "")
    order = "in the checkpoint's order" if report.in_checkpoint_order else "hottest first"
    profiles = [
        f"{p.name} ({p.tokens:,} tokens)" if p.problem is None else f"{p.name} ({p.problem})" for p in report.profiles
    ]
    return [
        f"{report.path}: {spec.family}, {report.parameters / 1e6:,.1f} M parameters in {report.weight_format}, "
        f"{report.bits_per_weight:.2f} bits each",
        f"{spec.n_layers} layers of hidden size {spec.hidden_size}, {spec.n_neurons} neurons ({activation}), "
        f"{spec.n_heads} heads, {spec.n_kv_heads} for keys and values; {spec.vocab_size} pieces; "
        f"{spec.max_positions} tokens of context",
        f"bytes: {format_size(sum(report.bytes.values()))} ({parts})",
        f"rows: {order}, {report.stride_bytes} bytes each",
        f"profiles: {', '.join(profiles) or 'none'}; predictors: {', '.join(report.predictors) or 'none'}; "
        f"plans: {', '.join(report.plans) or 'none'}",
        *(
            f"thresholds {t.name}: {t.problem or f'{t.active:.1%} of the neurons stay active; {t.warning}'}"
            for t in report.thresholds
        ),
        *(f"evaluation {e.name}: {line}" for e in report.evaluations for line in e.headlines),
        *(f"evaluation {e.name}: {e.problem}" for e in report.evaluations if e.problem is not None),
        f"source {report.source_digest[:16]}, pack {report.pack_digest[:16]}, order {report.row_order_digest[:16]}",
        "verified: every byte is as it was packed" if report.verified else "not verified; --verify reads every byte",
    ]


def evaluation_lines(report: EvaluationReport, all_layers: bool) -> list[str]:
    """The tables of `hybrid eval`: modes, then for each the layers, where they are few or asked for."""
    evaluation = report.evaluation
    header = ["mode", "perplexity", "over dense", "95 % interval", "KL (nats)", "median", "95 %", "99 %", "top-1"]
    lines = table(header, [[mode.mode, *_quality_cells(mode.quality)] for mode in evaluation.modes])
    for mode in evaluation.modes:
        telling = len(mode.layers) <= FEW_LAYERS and any(q.recall < 1 or q.precision < 1 for q in mode.layers)
        if mode.layers and (all_layers or telling):
            lines += ["", *_layer_table(mode)]
    text, files = evaluation.text, ", ".join(evaluation.text.paths)
    lines += [
        "",
        f"{text.tokens:,} tokens in {text.documents:,} documents of {files}, context {evaluation.settings['context']}",
    ]
    if evaluation.layer_tokens:
        lines.append(f"layers: on {evaluation.layer_tokens:,} tokens from all over the text")
    stored = [] if report.path is None else [f"stored as {report.path}"]
    return [*lines, *evaluation.notes, *stored]


def _quality_cells(quality: Quality) -> list[str]:
    ends = quality.interval
    return [
        f"{quality.perplexity:.4f}",
        f"{quality.ratio - 1:+.3%}",
        "-" if ends is None else f"{ends.low - 1:+.3%} to {ends.high - 1:+.3%}",
        f"{quality.divergence:.5f}",
        f"{quality.divergence_p50:.5f}",
        f"{quality.divergence_p95:.5f}",
        f"{quality.divergence_p99:.5f}",
        f"{quality.agreement:.2%}",
    ]


def _layer_table(mode: ModeEvaluation) -> list[str]:
    header = [f"{mode.mode}, layer", "active", "named", "recall", "precision", "mass kept", "mass dropped"]
    rows = [
        [
            str(index),
            f"{layer.active:.2%}",
            f"{layer.named:.2%}",
            f"{layer.recall:.2%}",
            f"{layer.precision:.2%}",
            f"{layer.mass_recall:.3%}",
            f"{layer.dropped_mass:.3%}",
        ]
        for index, layer in enumerate(mode.layers)
    ]
    return table(header, rows)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns aligned by width, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *rest]) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return [line(header), rule, *(line(row) for row in rows)]
