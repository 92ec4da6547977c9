"""`hybrid compare`: this engine beside layer-wise offload, its own and other programs', within one budget, in one run.

Every figure of the run is of the same prompts, the same text and the same threads. The headline is how many times as
fast this engine decodes as the fastest layer-wise form that was measured, whoever's it is.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch

from hybrid.extras import install_command
from hybrid.stages.compare_contenders import (
    Absent,
    Contender,
    Settings,
    context_of_a_process,
    hybrid_contenders,
    layer_wise_contenders,
    notes_of,
    prepare,
    with_context,
)
from hybrid.stages.compare_peers import peer_contenders
from hybrid.stages.compare_results import Comparison, rows_of
from hybrid.stages.compare_rounds import Seat, measure
from hybrid.stages.opening import resolve
from hybrid.stages.quality import read_passages
from hybrid.stages.texts import Corpus
from hybrid.store.files import ModelFiles
from hybrid.tokenizer import load_tokenizer
from profiler.artifacts import UserError, write_atomic

WINDOW = 512  # tokens of the pieces that perplexity is measured on, in a context that has room for them


def compare(
    path: str | Path,
    texts: Sequence[Path],
    settings: Settings,
    progress: Callable[[str, int, int], None] | None = None,
    plot: Path | None = None,
) -> Comparison:
    """Measure all contenders, in turn, and draw what was measured into the PNG file `plot` if one is given.

    Raises:
        UserError: what was asked for makes no sense, no text to take prompts from, or this engine could not be opened.
    """
    if plot is not None:
        require_drawing(plot)
    model = resolve(path)
    files = ModelFiles.open_files(model)
    with tempfile.TemporaryDirectory(prefix="hybrid-compare-") as scratch:
        setup, named, given = prepare(files, settings, Path(scratch))
        if setup.device == "cuda" and not torch.cuda.is_available():
            raise UserError("torch sees no CUDA device here; name --second-device cpu for a stand-in made of memory")
        if setup.device == "cuda":
            setup, given = with_context(setup, given, context_of_a_process())
        corpus = Corpus.open(texts, load_tokenizer(model), model)
        prompts = _prompts(corpus, settings)
        passages, _ = read_passages(corpus, min(setup.context, WINDOW), settings.text_tokens)
        everybody = [
            *layer_wise_contenders(setup),
            *peer_contenders(setup),
            *hybrid_contenders(setup, named, given),
        ]
        seats = measure(
            [one for one in everybody if isinstance(one, Contender)],
            files.spec.vocab_size,
            sum(record.size for record in files.manifest.files.values()),
            prompts,
            [passage.ids for passage in passages],
            settings.rounds,
            settings.tokens,
            progress or (lambda stage, done, total: None),
        )
    _require_ours(seats)
    in_turn = iter(seats)
    rows, headline = rows_of([one if isinstance(one, Absent) else next(in_turn) for one in everybody], passages)
    result = Comparison(
        model=str(path),
        device=setup.device,
        budget=None if setup.budgets is None else setup.budgets.vram,
        context=setup.context,
        threads=setup.threads,
        prompt_tokens=settings.prompt_tokens,
        tokens=settings.tokens,
        prompts=len(prompts),
        scored_tokens=sum(passage.predicted for passage in passages),
        text=[str(text) for text in texts],
        rows=rows,
        headline=headline,
        notes=notes_of(given, everybody),
    )
    if plot is not None:
        from hybrid.stages import compare_picture  # draws with matplotlib, which is optional
        from hybrid.stages.report_drawing import as_png

        write_atomic(plot, as_png(compare_picture.picture(result)))
    return result


def require_drawing(plot: Path) -> None:
    """Refuse what cannot be drawn, before minutes of measuring."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"--plot draws with matplotlib, which is missing: {install_command('report')}")
    if plot.suffix != ".png" or not plot.parent.is_dir():
        raise UserError(f"--plot names a PNG file in a folder that exists, such as compare.png, not {plot}")


def _prompts(corpus: Corpus, settings: Settings) -> list[list[int]]:
    windows = corpus.windows(settings.prompt_tokens)
    found = list(islice((w.ids for w in windows if len(w.ids) == settings.prompt_tokens), settings.prompts))
    if not found:
        raise UserError(
            f"the text has no document of {settings.prompt_tokens} tokens to take prompts from: give a longer one, or "
            "a smaller --prompt-tokens"
        )
    return found


def _require_ours(seats: Sequence[Seat]) -> None:
    """Refuse a comparison in which nothing is left to compare.

    Raises:
        UserError: why this engine could not run in any mode that skips rows, or at all.
    """
    ours = [seat for seat in seats if seat.contender.program == "hybrid"]
    for some in ([seat for seat in ours if seat.contender.kind == "hybrid"], ours):
        if some and all(seat.failure for seat in some):
            raise UserError(str(some[-1].failure))
