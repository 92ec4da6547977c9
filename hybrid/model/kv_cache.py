"""Keys and values in pages: `[block, kv_head, 16, head_dim]`, found through each sequence's block table.

A block number means the same place in every layer and on every unit, so one table per sequence serves all of them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import torch

from hybrid.model.pages import PAGE_TOKENS, pages_for

KV_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}  # by the names of KV_FORMATS


@dataclass(frozen=True)
class Span:
    """The tokens of one sequence in a step: its blocks, the position of its first token here, and how many."""

    blocks: array[int]  # of int64 ("q"), [pages]
    first_position: int
    count: int

    @property
    def end(self) -> int:
        """Tokens of the sequence once this step is done."""
        return self.first_position + self.count


class LayerPages:
    """The pages of one layer on one unit."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys  # [block, kv_head, PAGE_TOKENS, head_dim]
        self.values = values

    def write(self, span: Span, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values `[span.count, kv_head, head_dim]` at the span's positions."""
        positions = torch.arange(span.first_position, span.end)
        blocks = torch.tensor(span.blocks)[positions // PAGE_TOKENS].to(self.keys.device)
        slots = (positions % PAGE_TOKENS).to(self.keys.device)
        self.keys[blocks, :, slots] = keys.to(self.keys.dtype)
        self.values[blocks, :, slots] = values.to(self.values.dtype)

    def read(self, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the whole sequence so far, `[span.end, kv_head, head_dim]` each."""
        blocks = torch.tensor(span.blocks[: pages_for(span.end)], device=self.keys.device)
        return self._gather(self.keys, blocks, span.end), self._gather(self.values, blocks, span.end)

    @staticmethod
    def _gather(pages: torch.Tensor, blocks: torch.Tensor, tokens: int) -> torch.Tensor:
        picked = pages[blocks].permute(0, 2, 1, 3)  # [pages, PAGE_TOKENS, kv_head, head_dim]
        return picked.reshape(-1, *picked.shape[2:])[:tokens]
