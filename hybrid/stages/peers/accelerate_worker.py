"""transformers as a contender, with accelerate's `device_map`: whole layers on the GPU as far as they fit.

The rest lies in host memory, from where accelerate copies each layer to the GPU when its turn comes; without a GPU all
is computed by torch on the CPU.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import accelerate
import torch
import transformers

from hybrid.stages.peers.protocol import serve

TOKENS_AT_ONCE = 128  # whose logits are widened at once
GPU = 0  # accelerate's name of the first device


class Transformers:
    """One model."""

    def __init__(self) -> None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._model: Any = None

    def open(self, path: str, threads: int, context: int, *, dtype: str, vram: int = 0, ram: int = 0) -> dict[str, Any]:
        """Load a checkpoint in a 16-bit format in place of what was open.

        vram: bytes of weights that may lie on the GPU, 0 for a model on the CPU alone; ram: those in host memory beside
        them. gpu_layers in the answer: decoder layers that are wholly on the GPU.
        """
        self.close()
        torch.set_num_threads(threads)
        placed: dict[str, Any] = {"device_map": {"": "cpu"}}
        if vram:
            placed = {"device_map": "auto", "max_memory": {GPU: vram, "cpu": ram}}
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False, **placed
        ).eval()
        self._device = torch.device("cuda", GPU) if vram else torch.device("cpu")
        self._last = {}
        if "logits_to_keep" in inspect.signature(self._model.forward).parameters:
            self._last = {"logits_to_keep": 1}
        placed_by_name = getattr(self._model, "hf_device_map", {})  # there is none where all is in one place
        layers = [place for name, place in placed_by_name.items() if name.rpartition(".")[2].isdigit()]
        whole = self._model.config.num_hidden_layers if vram else 0
        return {
            "version": f"accelerate {accelerate.__version__}, transformers {transformers.__version__}",
            "gpu_layers": layers.count(GPU) if layers else whole,
            "vocabulary": self._model.config.vocab_size,
        }

    @torch.inference_mode()
    def decode(self, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        """Greedy: `seconds` of each of `tokens` steps after the prompt's, and the tokens `ids` that they were given.

        first_token_seconds: what the prompt took, with the token that followed it.
        """
        began = time.perf_counter()
        output = self._forward(prompt, use_cache=True, **self._last)
        ids = [int(output.logits[0, -1].argmax())]
        first = time.perf_counter() - began
        seconds = list[float]()
        while len(seconds) < tokens:
            began = time.perf_counter()
            output = self._forward(ids[-1:], use_cache=True, past_key_values=output.past_key_values, **self._last)
            ids.append(int(output.logits[0, -1].argmax()))
            seconds.append(time.perf_counter() - began)
        return {"first_token_seconds": first, "seconds": seconds, "ids": ids[:-1]}

    @torch.inference_mode()
    def score(self, ids: Sequence[int]) -> dict[str, Any]:
        """`loss`: summed over a text's predicted tokens, in nats; `likeliest`: the token expected for each."""
        logits = self._forward(ids[:-1], use_cache=False).logits[0]
        loss, likeliest = 0.0, list[int]()
        pieces = torch.split(logits, TOKENS_AT_ONCE)
        for piece, targets in zip(pieces, torch.split(torch.tensor(ids[1:]), TOKENS_AT_ONCE), strict=True):
            found = piece.float().cpu().log_softmax(dim=-1)
            loss -= found.gather(1, targets[:, None]).double().sum().item()
            likeliest += found.argmax(-1).tolist()
        return {"loss": loss, "likeliest": likeliest}

    def close(self) -> dict[str, Any]:
        """Forget the model."""
        self._model = None
        return {}

    def _forward(self, ids: Sequence[int], **options: Any) -> Any:
        return self._model(input_ids=torch.tensor([list(ids)], device=self._device), **options)


if __name__ == "__main__":
    contender = Transformers()
    serve({name: getattr(contender, name) for name in ("open", "decode", "score", "close")})
