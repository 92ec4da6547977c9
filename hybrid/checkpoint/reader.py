"""A checkpoint opened: its spec, and its tensors under this project's names, checked and streamed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hybrid.checkpoint.config import read_config
from hybrid.checkpoint.derived import FUSED, fused_part, fused_shape, shifted, unpaired
from hybrid.checkpoint.families import HARMLESS_SUFFIXES
from hybrid.checkpoint.family import Family
from hybrid.checkpoint.gguf_file import open_gguf
from hybrid.checkpoint.names import tensor_shapes
from hybrid.checkpoint.shards import open_shards
from hybrid.checkpoint.source import Source
from hybrid.checkpoint.tensors import SourceTensor, all_finite
from hybrid.spec import ModelSpec
from profiler.artifacts import UserError, digest_json, read_json_object
from profiler.blocks import from_ggml
from profiler.matrix import Matrix

BLOCK_BYTES = 16 << 20
CONFIG_LIMIT = 1 << 20


@dataclass
class Checkpoint:
    """A Hugging Face folder, or a GGUF file, whose every tensor is there with the shape that its config implies.

    `tensors` are keyed by this project's names (`hybrid.checkpoint.names`). Values are checked as they are streamed.
    made: files that stand for those of a folder (tokenizer and settings out of a GGUF file), by the names that they
    have in a model directory; None where `path` is a folder that holds them. notes: what whoever packs it should know.
    """

    path: Path
    spec: ModelSpec
    tensors: dict[str, SourceTensor]
    made: Mapping[str, bytes] | None = None
    notes: tuple[str, ...] = ()
    _digests: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, activation: str | None = None, with_tokenizer: bool = True) -> Checkpoint:
        """Read the config and the headers of all weight files; no weights yet.

        activation: what the FFN of a GGUF file computes, where that is not what its architecture says: a name of
        transformers', `drelu`, or `fatrelu:THRESHOLD`. with_tokenizer: whether its tokenizer is wanted.

        Raises:
            UserError: not a checkpoint, not supported, or damaged; the message says what to do.
        """
        if path.is_file():
            source = open_gguf(path, activation, with_tokenizer)
        else:
            _refuse_what_is_no_checkpoint(path)
            if activation is not None:
                raise UserError(f"config.json of {path} says which activation it has; --activation is for GGUF files")
            source = _open_folder(path)
        found, family = dict(source.tensors), source.family
        tensors = _collect(found, family, source.spec)
        if source.spec.tied_embeddings:
            _check_tied(found.pop(f"{family.modules['head']}.weight", None), tensors["embed.weight"])
        if found:
            raise UserError(
                f"{path} holds tensors that this architecture does not have, for example {min(found)}: "
                "it is not an ordinary checkpoint of this kind"
            )
        return Checkpoint(path, source.spec, tensors, source.made, source.notes)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.nbytes // tensor.dtype.itemsize for tensor in self.tensors.values())

    def blocks(self, name: str, rows: int | None = None) -> Iterator[torch.Tensor]:
        """Values of a tensor in order, `rows` indices of the first dimension at a time (by default about 16 MiB).

        Each block is contiguous, of the source's type, and valid until the next is asked for.

        Raises:
            UserError: a value is not finite, or the file cannot be read.
        """
        tensor = self.tensors[name]
        for block in self._stored(name, rows):
            values = tensor.widened(block)
            if not all_finite(values):
                raise _not_finite(tensor)
            yield values

    def blocks_kept(self, name: str, rows: int | None = None) -> Iterator[torch.Tensor]:
        """As `blocks`, of a tensor that is stored in blocks of a weight format: those, uint8 `[rows, vector_bytes]`,
        laid out as the store has them, quants and scales bit for bit.
        """
        tensor = self.tensors[name]
        assert tensor.block_format is not None, f"{name} has no blocks to be kept"
        for block in self._stored(name, rows):
            kept = from_ggml(block, tensor.block_format)
            if not Matrix(kept, tensor.block_format, tensor.shape[1]).is_finite():
                raise _not_finite(tensor)
            yield kept

    def _stored(self, name: str, rows: int | None) -> Iterator[torch.Tensor]:
        tensor, digest = self.tensors[name], hashlib.sha256()
        for block in tensor.blocks(rows or max(1, BLOCK_BYTES // tensor.row_bytes)):
            digest.update(block.view(torch.uint8).numpy().data)
            yield block
        self._digests[name] = digest.hexdigest()

    def source_digest(self) -> str:
        """Digest of all weights, whatever shards hold them and whatever they are packed as. All must have been read."""
        assert set(self._digests) == set(self.tensors), "the source digest needs every tensor read to its end"
        entries = [[n, list(t.shape), t.code, self._digests[n]] for n, t in sorted(self.tensors.items())]
        return digest_json(entries)


def _open_folder(path: Path) -> Source:
    family, spec = read_config(read_json_object(path / "config.json", CONFIG_LIMIT))
    prefix = family.modules["embed"].split(".")[0] + "."
    found: dict[str, SourceTensor] = {}
    for name, tensor in open_shards(path, _is_harmless).items():
        # Checkpoints saved from the model without its head lack the prefix.
        full = name if name.startswith((prefix, family.modules["head"])) else prefix + name
        if full in found:
            raise UserError(f"{tensor.shard.name} holds both {full} and {name}: which is meant? Download it again")
        if not _is_harmless(name):
            found[full] = tensor
    return Source(family, spec, found)


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist; give the folder of a Hugging Face checkpoint, or a GGUF file")
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the folder that holds config.json and the weights")
    if (path / "model.json").exists():
        raise UserError(f"{path} is a model directory of hybrid, already packed; give the checkpoint it was made from")
    if (path / "adapter_config.json").exists():
        raise UserError(f"{path} is an adapter (LoRA), not a model; merge it into its base model first")
    if not (path / "config.json").exists():
        raise UserError(f"{path} has no config.json; give the folder of a Hugging Face checkpoint")


def _not_finite(tensor: SourceTensor) -> UserError:
    return UserError(f"{tensor.name} in {tensor.shard.name} has NaN or infinite values: it is damaged")


def _is_harmless(name: str) -> bool:
    return name.endswith(HARMLESS_SUFFIXES)


def _source_name(family: Family, name: str) -> str:
    """What the checkpoint calls a tensor: `layers.3.q.bias` -> `model.layers.3.self_attn.q_proj.bias`."""
    module, _, kind = name.rpartition(".")
    layer = re.match(r"layers\.(\d+)\.", name)
    if layer is None:
        return f"{family.modules[module]}.{kind}"
    pattern = module.replace(layer[0], "layers.{i}.", 1)
    return f"{family.modules[pattern].replace('{i}', layer[1])}.{kind}"


def _collect(found: dict[str, SourceTensor], family: Family, spec: ModelSpec) -> dict[str, SourceTensor]:
    """Every tensor of the spec under this project's names, taken out of `found`."""
    tensors: dict[str, SourceTensor] = {}
    fused: dict[str, SourceTensor] = {}
    for name, shape in tensor_shapes(spec).items():
        source, (module, kind) = _source_name(family, name), name.split(".")[-2:]
        if family.fused_heads and module in FUSED:
            if source not in fused:
                fused[source] = _take(found, source, fused_shape(spec, shape))
            tensors[name] = fused_part(fused[source], spec, module, shape)
            continue
        tensor = _take(found, source, shape)
        if family.paired_heads and module in ("q", "k"):
            tensor = unpaired(tensor, spec.head_dim)
        is_norm = module.endswith("norm") and kind == "weight"
        tensors[name] = shifted(tensor, family.norm_shift) if family.norm_shift and is_norm else tensor
    return tensors


def _take(found: dict[str, SourceTensor], name: str, shape: tuple[int, ...]) -> SourceTensor:
    tensor = found.pop(name, None)
    if tensor is None:
        raise UserError(f"the checkpoint lacks {name} {list(shape)}, which config.json calls for; download it again")
    if tensor.shape != shape:
        raise UserError(
            f"{tensor.name} in {tensor.shard.name} has shape {list(tensor.shape)}, and config.json implies "
            f"{list(shape)}: they do not belong together"
        )
    _ = tensor.dtype  # refuses what is not a float
    return tensor


def _check_tied(head: SourceTensor | None, embeddings: SourceTensor) -> None:
    """A head that is stored although it is tied must be the embeddings, or the model would answer something else."""
    if head is None:
        return
    same = head.shape == embeddings.shape and head.code == embeddings.code
    if same:
        rows = max(1, BLOCK_BYTES // head.row_bytes)
        pairs = zip(embeddings.blocks(rows), head.blocks(rows), strict=True)
        same = all(torch.equal(ours, theirs) for ours, theirs in pairs)
    if not same:
        raise UserError(
            f"{head.name} differs from {embeddings.name}, which config.json ties to it; "
            "set tie_word_embeddings to false there"
        )
