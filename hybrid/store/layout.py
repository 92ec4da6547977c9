"""Where every tensor of a model directory lies in its file: a function of the spec, the weight format and the stride.

The files are safetensors. The header is padded with spaces so that the data begins at a page, and every tensor begins
at a multiple of 64 bytes. The format allows no holes, so a gap is a tensor of its own, `__pad.N`, which readers pass
over. Since the header follows from the spec, a reader compares it with the one it expects and parses nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from hybrid.checkpoint.names import dense_shapes
from hybrid.spec import ModelSpec

PAGE = 4096
ALIGNMENT = 64
PADDING = "__pad."
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1}
WEIGHT_CODES = {"bf16": "BF16", "f16": "F16"}  # weight format -> type in the safetensors format
WEIGHT_BYTES = 2


@dataclass(frozen=True)
class Entry:
    """One tensor; `offset` in bytes from the beginning of the file."""

    name: str
    code: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.code]

    @property
    def end(self) -> int:
        """Offset of the byte after it."""
        return self.offset + self.nbytes


@dataclass(frozen=True)
class FileLayout:
    """One file: its header, and its tensors in the order in which they are written, padding among them."""

    header: bytes
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.entries[-1].end

    def entry(self, name: str) -> Entry:
        """A tensor by name; `KeyError` where the file has none of that name."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]], kind: str) -> FileLayout:
    """A file of tensors (name, type, shape), one after the other; `kind` goes into the header's metadata."""
    placed: list[Entry] = []
    at = 0
    for name, code, shape in tensors:
        if gap := -at % ALIGNMENT:
            placed.append(Entry(f"{PADDING}{len(placed)}", "U8", (gap,), at))
            at += gap
        placed.append(Entry(name, code, shape, at))
        at = placed[-1].end
    table: dict[str, object] = {"__metadata__": {"format": "pt", "kind": f"hybrid {kind}"}}
    table |= {e.name: {"dtype": e.code, "shape": list(e.shape), "data_offsets": [e.offset, e.end]} for e in placed}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    header = len(text).to_bytes(8, "little") + text
    return FileLayout(header, tuple(Entry(e.name, e.code, e.shape, e.offset + len(header)) for e in placed))


def dense_layout(spec: ModelSpec, weight_format: str) -> FileLayout:
    """`dense.safetensors`: matrices in the weight format, vectors (norms, biases) as fp32."""
    matrix = WEIGHT_CODES[weight_format]
    return lay_out(((n, matrix if len(s) > 1 else "F32", s) for n, s in dense_shapes(spec).items()), "dense")


def least_stride(spec: ModelSpec) -> int:
    """Bytes from one row to the next: a neuron's vectors one after the other, rounded up to 64."""
    record = len(spec.row_parts) * spec.hidden_size * WEIGHT_BYTES
    return -(-record // ALIGNMENT) * ALIGNMENT


def layer_layout(spec: ModelSpec, weight_format: str, stride: int) -> FileLayout:
    """A neuron file: `rows [n, stride / 2]`, `neuron_ids [n]` and, where the FFN has biases, `bias [n]`."""
    n = spec.n_neurons
    tensors = [("rows", WEIGHT_CODES[weight_format], (n, stride // WEIGHT_BYTES)), ("neuron_ids", "I32", (n,))]
    return lay_out([*tensors, *([("bias", "F32", (n,))] if spec.ffn_bias else [])], "neurons")
