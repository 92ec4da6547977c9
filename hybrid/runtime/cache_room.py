"""How many pages of keys and values an engine has, and how many it fills before it forgets what it remembers."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid.model.pages import pages_for
from hybrid.runtime.memory import available_memory
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.sizes import page_bytes
from hybrid.spec import ModelSpec
from profiler.artifacts import UserError, format_size

REMEMBERED_SHARE = 1 / 4  # of the memory that is free, where nobody says how much keys and values may take


@dataclass(frozen=True)
class CacheRoom:
    """pages: of the pool. keep: see `hybrid.runtime.page_pool.PagePool`."""

    pages: int
    keep: int


def choose_room(spec: ModelSpec, options: EngineOptions, context: int, host_layers: int) -> CacheRoom:
    """The pages that were asked for, or as many as all sequences fill.

    A context or pages that were asked for are held against the host's memory, of which they take more as texts grow, so
    that nothing else would fail before a text is long. The context that a model has by default is not: most texts never
    fill it. Pages that nobody asked for are remembered in a share of what is free.

    host_layers: layers whose keys and values are there; elsewhere their room is taken at once.

    Raises:
        UserError: the longest text does not fit the pages, or they do not fit what is free.
    """
    one, all_layers = pages_for(context), page_bytes(spec, options.kv_format)
    pages = one * options.max_sequences if options.kv_pages is None else options.kv_pages
    if pages < one:
        raise UserError(
            f"a text of {context} tokens takes {one} pages of keys and values, {format_size(one * all_layers)}, and "
            f"there are {pages}, {format_size(pages * all_layers)}; give more, or ask for a smaller --context"
        )
    here = all_layers * host_layers // spec.n_layers
    free = available_memory()
    if options.kv_pages is not None and pages * here > free:
        raise UserError(
            f"{pages} pages of keys and values take {format_size(pages * here)}, and {format_size(free)} are free; "
            "give less, or close what uses memory"
        )
    if options.kv_pages is None and options.context is not None and pages * here > free:
        sequences = options.max_sequences
        texts, fewer = ("", "") if sequences == 1 else (f" for {sequences} sequences", ", or for fewer sequences")
        raise UserError(
            f"keys and values of {context} tokens{texts} take {format_size(pages * here)}, and {format_size(free)} "
            f"are free; ask for a smaller --context{fewer}, or close what uses memory"
        )
    if not here or options.kv_pages is not None:
        return CacheRoom(pages, pages)
    return CacheRoom(pages, min(pages, max(one, int(free * REMEMBERED_SHARE) // here)))
