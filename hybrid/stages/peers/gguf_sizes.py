"""What the layers of a GGUF file take, so that as many as fit are given to a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hybrid.checkpoint.gguf_header import read_gguf_header
from profiler.artifacts import UserError

BLOCK = re.compile(r"blk\.(\d+)\.(ffn_(?:up|down|gate)\.)?")
HEAD, EMBEDDINGS = "output", "token_embd"


@dataclass(frozen=True)
class GgufSizes:
    """Bytes: of all tensors, of each layer, of its FFN's matrices, and of the head with its norm."""

    total: int
    layers: tuple[int, ...]
    ffn: tuple[int, ...]
    head: int

    def on_gpu(self, layers: int, kv_bytes: int) -> int:
        """Bytes of weights and KV pages, `kv_bytes` for a layer, that `-ngl` puts on a GPU: the last layers, the head.

        The head counts as the first of them in newer versions of llama.cpp and as the last in older ones; the more of
        both is told.
        """
        sizes = [layer + kv_bytes for layer in self.layers]
        if layers > len(sizes):
            return sum(sizes) + self.head
        last = sum(sizes[len(sizes) - layers :])
        return max(last, last - sizes[-layers] + self.head) if layers else 0

    def layers_within(self, budget: int, kv_bytes: int) -> int:
        """The greatest `-ngl` that puts no more than the budget on a GPU."""
        return max(k for k in range(len(self.layers) + 2) if self.on_gpu(k, kv_bytes) <= budget)

    def without_ffn(self, kv_bytes: int) -> int:
        """Bytes of everything but the FFNs' matrices and the embeddings, KV pages included."""
        return sum(self.layers) - sum(self.ffn) + self.head + kv_bytes * len(self.layers)


def read_gguf_sizes(path: Path) -> GgufSizes:
    """The sizes of a file's tensors.

    Raises:
        UserError: the file is no GGUF, or holds no layers.
    """
    sizes = {tensor.name: tensor.nbytes for tensor in read_gguf_header(path).tensors}
    layers: dict[int, list[int]] = {}
    for name, size in sizes.items():
        if found := BLOCK.match(name):
            layer = layers.setdefault(int(found[1]), [0, 0])
            layer[0] += size
            layer[1] += size if found[2] else 0
    if not layers or sorted(layers) != list(range(len(layers))):
        raise UserError(f"{path} holds no layers of a language model; give the model that llama.cpp opens")
    head = sum(size for name, size in sizes.items() if name.partition(".")[0].startswith(HEAD))
    tied = sizes.get(f"{EMBEDDINGS}.weight", 0) if f"{HEAD}.weight" not in sizes else 0
    ordered = [layers[number] for number in sorted(layers)]
    return GgufSizes(sum(sizes.values()), tuple(a for a, _ in ordered), tuple(b for _, b in ordered), head + tied)
