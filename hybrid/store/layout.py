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
from profiler.formats import is_quantised, vector_bytes

PAGE = 4096
ALIGNMENT = 64
PADDING = "__pad."
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1}
# weight format -> type in the safetensors format; vectors of blocks are bytes
WEIGHT_CODES = {"bf16": "BF16", "f16": "F16", "q8_0": "U8", "q4_0": "U8"}
POSITIONS = "positions.weight"


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


def matrix_format(name: str, weight_format: str) -> str:
    """The format of a dense matrix in a model of `weight_format`: learned positions are added, and stay 16 bit."""
    return "f16" if name == POSITIONS and is_quantised(weight_format) else weight_format


def dense_layout(spec: ModelSpec, weight_format: str) -> FileLayout:
    """`dense.safetensors`: matrices in the weight format, vectors (norms, biases) as fp32.

    Raises:
        UserError: the format stores blocks, and a row of a matrix is not a whole number of them.
    """

    def tensor(name: str, shape: tuple[int, ...]) -> tuple[str, str, tuple[int, ...]]:
        if len(shape) == 1:
            return name, "F32", shape
        rows, columns = shape
        code, width = _stored(matrix_format(name, weight_format), columns)
        return name, code, (rows, width)

    return lay_out((tensor(name, shape) for name, shape in dense_shapes(spec).items()), "dense")


def least_stride(spec: ModelSpec, weight_format: str) -> int:
    """Bytes from one row to the next: a neuron's vectors one after the other, rounded up to 64.

    Raises:
        UserError: the format stores blocks, and the hidden size is not a whole number of them.
    """
    record = len(spec.row_parts) * vector_bytes(weight_format, spec.hidden_size)
    return -(-record // ALIGNMENT) * ALIGNMENT


def layer_layout(spec: ModelSpec, weight_format: str, stride: int) -> FileLayout:
    """A neuron file: `rows [n, stride]` in elements, `neuron_ids [n]` and, where the FFN has biases, `bias [n]`."""
    n, code = spec.n_neurons, WEIGHT_CODES[weight_format]
    tensors = [("rows", code, (n, stride // ITEM_BYTES[code])), ("neuron_ids", "I32", (n,))]
    return lay_out([*tensors, *([("bias", "F32", (n,))] if spec.ffn_bias else [])], "neurons")


def _stored(weight_format: str, columns: int) -> tuple[str, int]:
    """Type of a matrix in the safetensors format, and the elements of one of its rows."""
    code = WEIGHT_CODES[weight_format]
    return code, vector_bytes(weight_format, columns) // ITEM_BYTES[code]
