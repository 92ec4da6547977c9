"""Evaluations as files of a model directory: what a mode cost on a text, document by document, and of which model.

No torch here: `hybrid inspect` reads them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybrid.store.files import ModelFiles
from profiler.artifacts import UserError, from_json, read_json, sha256_file, write_json
from profiler.quality import Interval, LayerQuality, Quality
from profiler.thresholds import read_thresholds

EVALUATION_VERSION = 1
REFERENCE = "dense"
Digests = dict[str, str | None]
WHY_STALE = {
    "source": "made for another checkpoint",
    "pack": "the model was packed anew since",
    "predictors": "the predictors were made anew since",
    "thresholds": "the thresholds are others now",
}


@dataclass(frozen=True)
class EvaluatedText:
    """The text: the paths given, a digest of what they held, its documents, and its predicted tokens."""

    paths: tuple[str, ...]
    digest: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class EvaluatedDocument:
    """What the bootstrap draws: a document, or a part of a long one.

    digest: of all of the document, 16 hexadecimal digits. tokens: predicted ones.
    """

    name: str
    digest: str
    tokens: int


@dataclass(frozen=True)
class ModeEvaluation:
    """One mode. Of every document: summed loss and KL (nats), and tokens that agree with dense.

    layers: measured on some of the text, see `Evaluation.layer_tokens`; empty for dense, which names everything.
    """

    mode: str
    quality: Quality
    layers: tuple[LayerQuality, ...]
    losses: tuple[float, ...]
    divergences: tuple[float, ...]
    agreeing: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or not len(self.losses) == len(self.divergences) == len(self.agreeing):
            raise UserError("evaluation: a mode has a name, and a loss, a divergence and an agreement per document")
        for number in (*self.losses, *self.divergences, *self.agreeing):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise UserError(f"evaluation: {number!r:.40} is no figure of a document")


@dataclass(frozen=True)
class Evaluation:
    """One run of `hybrid eval`.

    digests: of what was evaluated, by name: source, pack and, where a mode uses them, predictors and thresholds.
    profile: whose predictors. settings: what else was asked for. layer_tokens: tokens that layers were measured on.
    notes: what a reader has to know, such as documents that were trained on.
    """

    name: str
    digests: Digests
    profile: str
    settings: dict[str, str | int | None]
    text: EvaluatedText
    documents: tuple[EvaluatedDocument, ...]
    modes: tuple[ModeEvaluation, ...]
    layer_tokens: int
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.modes or not all(len(mode.losses) == len(self.documents) for mode in self.modes):
            raise UserError("evaluation: every mode has figures of every document")
        if not isinstance(self.digests, dict) or not {"source", "pack"} <= set(self.digests):
            raise UserError("evaluation: it does not say which model was evaluated")
        if not isinstance(self.name, str) or not isinstance(self.profile, str) or not isinstance(self.settings, dict):
            raise UserError("evaluation: it does not say what was evaluated, and how")

    def headlines(self) -> list[str]:
        """A line for each mode: what it costs, and on how many tokens that was measured."""
        return [f"{mode.mode}: {headline(mode.quality)}" for mode in self.modes if mode.mode != REFERENCE] or [
            f"{mode.mode}: perplexity {mode.quality.perplexity:.4f} on {mode.quality.tokens:,} tokens"
            for mode in self.modes
        ]


def headline(quality: Quality) -> str:
    """`+0.05 % perplexity [0.02, 0.08] on 58,000 tokens`."""
    ends = quality.interval
    between = "no interval" if ends is None else f"[{100 * (ends.low - 1):+.2f}, {100 * (ends.high - 1):+.2f}]"
    return f"{100 * (quality.ratio - 1):+.2f} % perplexity {between} on {quality.tokens:,} tokens"


def current_digests(files: ModelFiles, profile: str | None, thresholds: str | None = None) -> Digests:
    """Of a model directory as it is now; `profile` and `thresholds` name those that are used, if any are."""
    digests: Digests = {"source": files.source_digest, "pack": files.pack_digest}
    if profile is not None:
        path = files.predictors_path(profile)
        digests["predictors"] = sha256_file(path) if path.is_file() else None
    if thresholds is not None:
        path = files.thresholds_path(thresholds)
        digests["thresholds"] = read_thresholds(path).digest if path.is_file() else None
    return digests


def why_stale(evaluation: Evaluation, files: ModelFiles) -> str | None:
    """Why an evaluation says nothing of the directory as it is now; None where it does."""
    profile = evaluation.profile if "predictors" in evaluation.digests else None
    thresholds = evaluation.settings.get("thresholds") if "thresholds" in evaluation.digests else None
    try:
        now = current_digests(files, profile, None if thresholds is None else str(thresholds))
    except UserError as error:
        return str(error)
    for name, digest in evaluation.digests.items():
        if now.get(name) != digest:
            return WHY_STALE.get(name, f"its {name} are not what they were")
    return None


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation, atomically."""
    write_json(path, "evaluation", EVALUATION_VERSION, asdict(evaluation))


def read_evaluation(path: Path, mend: str = "hybrid eval DIR --text FILE") -> Evaluation:
    """Read an evaluation; see `why_stale` for whether it is of the model as it is.

    Raises:
        UserError: missing, damaged, or of another format version; the message names the command `mend`.
    """
    body = read_json(path, "evaluation", EVALUATION_VERSION, mend)
    try:
        return _evaluation({k: v for k, v in body.items() if k not in ("kind", "format_version")})
    except (UserError, AttributeError, KeyError, OverflowError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is damaged ({what}); make it anew with: {mend}") from error


def _evaluation(body: dict[str, Any]) -> Evaluation:
    text = {**body["text"], "paths": tuple(body["text"]["paths"])}
    built = {
        **body,
        "text": from_json(EvaluatedText, text, "evaluation"),
        "documents": tuple(from_json(EvaluatedDocument, value, "evaluation") for value in body["documents"]),
        "modes": tuple(_mode(value) for value in body["modes"]),
        "notes": tuple(map(str, body["notes"])),
    }
    return from_json(Evaluation, built, "evaluation")


def _mode(value: dict[str, Any]) -> ModeEvaluation:
    quality = dict(value["quality"])
    if quality["interval"] is not None:
        quality["interval"] = from_json(Interval, quality["interval"], "evaluation")
    built = {
        **value,
        "quality": from_json(Quality, quality, "evaluation"),
        "layers": tuple(from_json(LayerQuality, layer, "evaluation") for layer in value["layers"]),
        **{name: tuple(value[name]) for name in ("losses", "divergences", "agreeing")},
    }
    return from_json(ModeEvaluation, built, "evaluation")
