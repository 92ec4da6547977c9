"""What changes from step to step, in memory that both units read: ids, positions and block tables."""

from __future__ import annotations

from array import array

import numpy as np
import torch

from hybrid.model.eager import Step
from hybrid.model.pages import pages_for
from hybrid.ops.limits import NATIVE_TOKENS


class StepInputs:
    """The inputs of steps of up to `NATIVE_TOKENS` tokens, in host memory (pinned for a GPU) and on a device.

    `fill` writes the host's, `send` copies them to the device: one block of memory, one copy.
    ids, positions: int64 `[NATIVE_TOKENS]` on the device; tables: int32 `[NATIVE_TOKENS, pages]` there, the blocks of
    each token's sequence. What lies beyond a step's tokens and their pages is what earlier steps left.

    Args:
        context: tokens of the longest sequence there can be.
        device: of the other copy.
    """

    def __init__(self, context: int, device: torch.device) -> None:
        self._pages = pages_for(context)
        words = 2 * NATIVE_TOKENS + -(-NATIVE_TOKENS * self._pages // 2)
        self._host = torch.zeros(words, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._there = torch.zeros(words, dtype=torch.int64, device=device)
        self.ids, self.positions, self.tables = self._parts(self._there)
        ids, positions, tables = self._parts(self._host)
        self._tables = tables.numpy()
        self._ids, self._positions = ids.numpy(), positions.numpy()
        self._tokens, self._blocks = array("q", [0]), array("q", [0] * NATIVE_TOKENS)
        # Of the host's: number of tokens, ids, positions, and addresses of block tables, as `cpu.HostStep` takes them.
        self.addresses = (
            self._tokens.buffer_info()[0],
            ids.data_ptr(),
            positions.data_ptr(),
            self._blocks.buffer_info()[0],
        )

    @property
    def bytes(self) -> int:
        """On the device."""
        return self._there.numel() * self._there.element_size()

    def fill(self, step: Step) -> None:
        """Take a step's inputs; its block tables are read until it is over."""
        tokens, at = len(step.token_ids), 0
        self.count(tokens)
        self._ids[:tokens] = step.token_ids
        self._positions[:tokens] = step.positions
        for span in step.spans:
            end, pages = at + span.count, pages_for(span.end)
            self._tables[at:end, :pages] = np.frombuffer(span.blocks, np.int64)[:pages]
            self._blocks[at:end] = array("q", [span.blocks.buffer_info()[0]] * span.count)
            at = end

    def count(self, tokens: int) -> None:
        """Take a number of tokens alone, for what reads nothing else of a step."""
        self._tokens[0] = tokens

    def send(self, tokens: int) -> None:
        """Copy what a step of so many tokens reads to the device, without waiting."""
        words = 2 * NATIVE_TOKENS + -(-tokens * self._pages // 2)
        self._there[:words].copy_(self._host[:words], non_blocking=True)

    def _parts(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids, positions, rest = words.tensor_split((NATIVE_TOKENS, 2 * NATIVE_TOKENS))
        tables = rest.view(torch.int32)[: NATIVE_TOKENS * self._pages]
        return ids, positions, tables.view(NATIVE_TOKENS, self._pages)
