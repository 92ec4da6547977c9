"""The engine as a Python object.

from hybrid import LLM, SamplingParams

with LLM("demo") as llm:
    print(llm.generate(["def parse_args("], SamplingParams(max_tokens=32))[0].text)
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch

from hybrid.runtime.engine import Engine
from hybrid.runtime.grammar import Grammar
from hybrid.runtime.logprobs import TokenLogprob
from hybrid.runtime.options import PACE
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import FinishReason
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.runtime.summary import RunSummary, summarise
from hybrid.runtime.trace import STEPS, Trace
from hybrid.stages.opening import open_engine
from hybrid.tokenizer import Tokenizer
from profiler.artifacts import UserError, parse_size

__all__ = ["LLM", "Completion", "Grammar", "SamplingParams", "TokenLogprob"]


@dataclass(frozen=True)
class Completion:
    """What a prompt became. `finish_reason` is `stop` (end token, stop string or end of the grammar), `length`, or
    `cancelled`, where a stream was told to end.

    token_ids: all that were sampled but an end token; a stop string's are among them. first_token_seconds: from the
    request to its first token, waiting for other prompts included; None where it was cancelled before. cached_tokens:
    of the prompt, found in pages that were computed before. logprobs: of each of the token_ids, where asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    first_token_seconds: float | None
    cached_tokens: int
    logprobs: list[TokenLogprob] | None = None


class LLM:
    """A model, opened. One caller at a time; use it as a context manager, or call `close`.

    Args:
        path: a model directory that `hybrid pack` made, or `demo` for the shipped model.
        mode: `dense`, `exact`, `predicted` or `threshold`, which is lossy; None takes predicted where the model is
            profiled, else exact where its activation has exact zeros, else dense.
        plan: the name of a plan of the directory, or the path of one. None takes the plan `default` where there is a
            GPU, if it is for this machine and fits now, else one for what is free, which is made now or was for an
            earlier use and is kept in the cache; without a GPU everything is computed on the CPU.
        vram: a budget of GPU memory, in bytes or as `8GiB`, for a plan to be made; 0 leaves the GPU alone.
        ram: a budget of host memory for the model, likewise: what has no room there is read from the drive when needed.
        device: `cpu` or `cuda`: what the plan's GPU is. None is `cuda` where a plan or a budget is given. `cpu` asks
            for the stand-in made of ordinary memory.
        context: tokens of one sequence, prompt and output; None takes the plan's, else the model's own up to 4096.
        max_sequences: prompts that are decoded together.
        kv_format: `f16`, `bf16` or `f32`.
        kv_memory: of keys and values of all texts, in bytes or as `512MiB`: at least what a text of the context takes.
            Where it is full the youngest texts are put off, and computed again. None has room for `max_sequences`.
        pace: while other texts grow, a step that reads a prompt takes about so many times a step's usual time.
        threads: CPU threads; None takes one for each performance core within the process's affinity and CPU quota.
        mmap: use the model's files in place, shared between processes and read when they are used; False reads them
            into memory of this process when the model is opened.
        profile: the name of the profile whose predictors are used.
        thresholds: the name of the thresholds that mode threshold uses; see `hybrid calibrate`.
        slowdown: with the stand-in, how many times as long `gpu` or `cpu` takes for all that it computes, 1 to 100: two
            equal parts of a machine then imitate unequal ones. Results are the same.
        overlap: both units of a layer that is split over them compute at the same time; False has them do so one after
            the other, to the same bits.
        note: hears what a user should know of how the model was opened, line by line; by default Python warns.
        inform: hears in one line how the model was opened, and by which plan.
        tell: hears of `(done, total)` bytes while weights are copied to the GPU.

    Raises:
        UserError: what was asked for cannot be opened; the message says how to mend it.

    """

    def __init__(
        self,
        path: str | Path,
        *,
        mode: str | None = None,
        plan: str | Path | None = None,
        device: Literal["cpu", "cuda"] | None = None,
        context: int | None = None,
        max_sequences: int = 8,
        kv_format: str = "f16",
        kv_memory: int | str | None = None,
        pace: float = PACE,
        threads: int | None = None,
        mmap: bool = True,
        profile: str = "default",
        thresholds: str = "default",
        slowdown: Mapping[str, float] | None = None,
        overlap: bool = True,
        vram: int | str | None = None,
        ram: int | str | None = None,
        note: Callable[[str], None] | None = None,
        inform: Callable[[str], None] = lambda line: None,
        tell: Callable[[int, int], None] | None = None,
    ) -> None:
        notes: list[str] = []
        self._engine: Engine = open_engine(
            path,
            mode=mode,
            plan=plan,
            device=device,
            context=context,
            max_sequences=max_sequences,
            kv_format=kv_format,
            kv_memory=parse_size(kv_memory) if isinstance(kv_memory, str) else kv_memory,
            pace=pace,
            threads=threads,
            mmap=mmap,
            profile=profile,
            thresholds=thresholds,
            slowdown=slowdown,
            overlap=overlap,
            vram=parse_size(vram) if isinstance(vram, str) else vram,
            ram=parse_size(ram) if isinstance(ram, str) else ram,
            automatic=True,
            note=note or notes.append,
            inform=inform,
            tell=tell,
        )
        for line in notes:
            warnings.warn(line, stacklevel=2)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer: `encode(text)`, `decode(token_ids)`."""
        return self._engine.tokenizer

    @property
    def directory(self) -> Path:
        """The model directory."""
        return self._engine.directory.path

    @property
    def context(self) -> int:
        """Tokens of one text, prompt and output."""
        return self._engine.context

    @property
    def mode(self) -> str:
        """The mode that the model was opened in."""
        return self._engine.options.mode

    def generate(
        self, prompts: str | Sequence[str | Sequence[int]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Complete the prompts, decoding them together; `params.n` completions of each, one after the other, in order.

        Args:
            prompts: a text, or several; of each its token ids may be given instead.
            params: how they are continued.

        Raises:
            UserError: a prompt or what is asked for cannot be computed; the message says how to mend it.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        params = params or SamplingParams()
        sequences = [self._sequence(text, params, index) for text in texts for index in range(params.n)]
        for _ in self._engine.run(sequences):
            pass
        return [_completion(sequence) for sequence in sequences]

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[str]:
        """The completion's text, piece by piece, as soon as it is certain; all of it is in `last_completion` then.

        Args:
            prompt: a text, or its token ids.
            params: as `generate`.
            cancelled: asked after each step; True ends the text there.

        Raises:
            UserError: as `generate`, or several completions are asked for.
        """
        params = params or SamplingParams()
        if params.n != 1:
            raise UserError(f"n is {params.n}; a stream gives one text")
        sequence = self._sequence(prompt, params, 0)
        self._engine.check(sequence)  # now, not when the first piece is asked for
        return self._pieces(sequence, cancelled)

    def _pieces(self, sequence: TokenSequence, cancelled: Callable[[], bool]) -> Iterator[str]:
        shown = 0
        for _ in self._engine.run([sequence]):
            if sequence.finish_reason is None and cancelled():
                self._engine.cancel(sequence)
            text = sequence.visible_text()
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
        if len(sequence.text) > shown:  # another call's steps ended it meanwhile
            yield sequence.text[shown:]
        self.last_completion = _completion(sequence)

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """float32 `[tokens, vocab]`: what the model expects after each token of a text."""
        return self._engine.logits(token_ids)

    @contextlib.contextmanager
    def trace(self, path: str | Path, steps: int | None = None) -> Iterator[Trace]:
        """Show what each unit does when, while the context lasts, in a file for ui.perfetto.dev or chrome://tracing.

        It is written when the context ends, also by an exception, Ctrl-C among them.

        Args:
            path: of the file, which is replaced.
            steps: so many of the first steps that read prompts are traced, and as many of those that decode; None for
                32 of each.

        Raises:
            UserError: the file cannot be written, or steps makes no sense.
        """
        engine, trace = self._engine, Trace(STEPS if steps is None else steps)
        if engine.trace is not None:
            raise RuntimeError("a trace is being made already")
        about = {"model": str(engine.directory.path), "mode": self.mode}
        trace.write(Path(path), about)  # what cannot be written is said before anything is computed
        engine.trace = trace
        try:
            yield trace
        finally:
            engine.trace = None
            trace.write(Path(path), {**about, "summary": asdict(self.summary())})

    def summary(self) -> RunSummary:
        """What the engine has computed since it was opened: rows by unit, bytes, memory."""
        return summarise(self._engine)

    def close(self) -> None:
        """Give back threads, memory and mappings."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sequence(self, prompt: str | Sequence[int], params: SamplingParams, index: int) -> TokenSequence:
        tokenizer = self._engine.tokenizer
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return TokenSequence(ids, params, tokenizer, index)


def _completion(sequence: TokenSequence) -> Completion:
    assert sequence.finish_reason is not None
    return Completion(
        sequence.text,
        sequence.output_ids,
        sequence.finish_reason,
        sequence.prompt_ids,
        sequence.first_token_seconds,
        sequence.cached_tokens,
        None if sequence.params.logprobs is None else sequence.logprobs,
    )
