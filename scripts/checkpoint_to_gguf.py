"""A Hugging Face checkpoint as a GGUF file, with llama.cpp's names, order of heads and metadata.

What llama.cpp's convert_hf_to_gguf.py makes of the architectures that `hybrid pack` reads as GGUF, for tests, examples
and comparisons on machines without it. Tensors of one shard are in memory at a time.

Example: python scripts/checkpoint_to_gguf.py ~/models/ReluLLaMA-7B relu7b.gguf --type q8_0
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from synthetic.gguf_layout import describe, gguf_name, permute
from tokenizer_to_gguf import write_tokenizer

from hybrid.checkpoint.reader import Checkpoint
from hybrid.checkpoint.tensors import SourceTensor
from hybrid.spec import Llama3Scaling, ModelSpec

TYPES = {
    kind: gguf.GGMLQuantizationType[kind.upper()] for kind in ("f32", "f16", "bf16", "q8_0", "q4_0", "q5_0", "q4_1")
}
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "bamboo": "llama",
    "prosparse": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "arcee": "arcee",
    "nemotron": "nemotron",
}
PAIRED = ("llama", "arcee")


def convert(source: Path, destination: Path, kind: str = "f16", **metadata: Any) -> Path:
    """Write the checkpoint folder `source` to the file `destination`; matrices in `kind`, vectors in fp32.

    A matrix whose rows are no whole blocks is written as f16, as llama.cpp does. metadata: texts and numbers beside
    what the checkpoint says, by their keys.
    """
    checkpoint = Checkpoint.open(source)
    architecture = ARCHITECTURES[checkpoint.spec.family]
    writer = gguf.GGUFWriter(destination, architecture)
    _describe(writer, checkpoint.spec, architecture)
    write_tokenizer(writer, source)
    for key, value in metadata.items():
        _ADD[type(value)](writer, key, value)
    if checkpoint.spec.rope_scaling is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors(checkpoint.spec, checkpoint.spec.rope_scaling))
    for name, tensor in checkpoint.tensors.items():
        values = _whole(tensor).float()
        part = name.split(".")[-2]
        if part in ("q", "k") and architecture in PAIRED:
            values = permute(values, len(values) // checkpoint.spec.head_dim)
        _add(writer, gguf_name(name), values, TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination


_ADD = {str: gguf.GGUFWriter.add_string, int: gguf.GGUFWriter.add_uint32, float: gguf.GGUFWriter.add_float32}


def rope_factors(spec: ModelSpec, scaling: Llama3Scaling) -> npt.NDArray[np.float32]:
    """fp32 `[rotary / 2]`: what each frequency is divided by (Llama 3.1)."""
    dims = spec.rotary_size
    factors = []
    for k in range(0, dims, 2):
        wavelength = 2 * math.pi * spec.rope_theta ** (k / dims)
        share = scaling.original_positions / wavelength
        smooth = (share - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32)


def _whole(tensor: SourceTensor) -> torch.Tensor:
    return torch.cat([tensor.widened(block).clone() for block in tensor.blocks(1 << 12)])


def _add(writer: gguf.GGUFWriter, name: str, values: torch.Tensor, kind: gguf.GGMLQuantizationType) -> None:
    if values.ndim == 1:
        kind = gguf.GGMLQuantizationType.F32
    elif values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quantize(values.numpy(), kind), raw_dtype=kind)


def _describe(writer: gguf.GGUFWriter, spec: ModelSpec, architecture: str) -> None:
    writer.add_type("model")
    writer.add_name("converted")
    describe(writer, spec)
    if spec.head_dim * spec.n_heads != spec.hidden_size or architecture == "qwen3":
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)


def main() -> None:
    """Parse, convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FOLDER")
    parser.add_argument("destination", type=Path, metavar="FILE")
    parser.add_argument("--type", choices=list(TYPES), default="f16", help="of the matrices")
    arguments = parser.parse_args()
    settings = json.loads((arguments.source / "config.json").read_text())
    print(f"{settings['architectures'][0]} -> {convert(arguments.source, arguments.destination, arguments.type)}")


if __name__ == "__main__":
    main()
