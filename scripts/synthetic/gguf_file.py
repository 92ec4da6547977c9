"""A synthetic model as GGUF, the format of llama.cpp: the same weights under its names, written tensor by tensor.

llama.cpp's `llama` architecture always computes SiLU: its text differs from the engine's where that is ReLU, and its
bytes and products are the same. Its `arcee` computes squared ReLU, as the engine does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from profiler.artifacts import UserError
from synthetic.gguf_layout import describe, gguf_name, permute
from synthetic.weights import PlantedWeights

TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
ROWS_AT_ONCE = 1024
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "arcee": "arcee"}


def write_gguf(path: Path, weights: PlantedWeights, weight_type: str) -> None:
    """Write the model to `path`: every matrix in `weight_type`, norms in fp32. One tensor is in memory at a time.

    Raises:
        UserError: the type is not known, rows do not divide into its blocks, or llama.cpp does not have the family.
    """
    architecture = ARCHITECTURES.get(weights.shape.family)
    if architecture is None:
        raise UserError(f"llama.cpp has no {weights.shape.family}; --gguf takes {', '.join(ARCHITECTURES)}")
    if weight_type not in TYPES:
        raise UserError(f"GGUF type {weight_type!r} is not known; known are {', '.join(TYPES)}")
    block = gguf.GGML_QUANT_SIZES[TYPES[weight_type]][0]
    if any(len(shape) > 1 and shape[1] % block for shape in weights.names.values()):
        raise UserError(f"{weight_type} needs rows of a multiple of {block} weights; give f16")
    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    try:
        _describe(writer, weights, weight_type)
        for name, shape in weights.names.items():
            kind = TYPES[weight_type] if len(shape) > 1 else gguf.GGMLQuantizationType.F32
            size = _bytes(shape, kind)
            writer.add_tensor_info(gguf_name(name), shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, shape in weights.names.items():
            kind = TYPES[weight_type] if len(shape) > 1 else gguf.GGMLQuantizationType.F32
            writer.write_tensor_data(_converted(weights, name, kind))
        writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _bytes(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * block_bytes


def _converted(
    weights: PlantedWeights, name: str, kind: gguf.GGMLQuantizationType
) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    values, part = weights.tensor(name), name.split(".")[-2]
    if values.ndim == 1:
        return values.float().numpy()
    if part in ("q", "k"):
        values = permute(values, weights.spec.n_heads if part == "q" else weights.spec.n_kv_heads)
    pieces = (gguf.quantize(piece.float().numpy(), kind) for piece in torch.split(values, ROWS_AT_ONCE))
    return np.concatenate([np.ascontiguousarray(piece).view(np.uint8) for piece in pieces])


def _describe(writer: gguf.GGUFWriter, weights: PlantedWeights, weight_type: str) -> None:
    spec = weights.spec
    writer.add_name("synthetic")
    writer.add_file_type(FILE_TYPES[weight_type])
    describe(writer, spec)
    tokens, kinds = zip(*_vocabulary(spec.vocab_size), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(spec.vocab_size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _vocabulary(size: int) -> Iterator[tuple[str, int]]:
    """Pieces that mean nothing, after those that SentencePiece models begin with."""
    first = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
    first += [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    for i in range(size):
        yield first[i] if i < len(first) else (f"\u2581t{i}", gguf.TokenType.NORMAL)
