"""llama.cpp as a contender, through the low-level calls of llama-cpp-python: `llama_decode` alone is timed."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from peers.protocol import serve


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Drops llama.cpp's log."""


class LlamaCpp:
    """One model with one context."""

    def __init__(self) -> None:
        llama_cpp.llama_log_set(_silent, None)
        llama_cpp.llama_backend_init()
        self._model = self._context = None

    def open(
        self, path: str, threads: int, context: int, flash_attention: bool, mmap: bool, batch: int
    ) -> dict[str, Any]:
        """Load a GGUF file with a context of so many tokens, in place of what was open; keys and values in f16."""
        self.close()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        if hasattr(model, "use_mmap"):
            model.use_mmap = mmap
        else:
            model.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if mmap else llama_cpp.LLAMA_LOAD_MODE_NONE
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model)
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, batch, batch
        params.n_threads = params.n_threads_batch = threads
        if hasattr(params, "flash_attn_type"):
            params.flash_attn_type = int(flash_attention)
        else:
            params.flash_attn = flash_attention
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not make a context of {context} tokens")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(vocabulary)
        return {
            "version": llama_cpp.__version__,
            "system": llama_cpp.llama_print_system_info().decode().strip(),
            "bytes": llama_cpp.llama_model_size(self._model),
        }

    def decode(self, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        """Greedy: `seconds` of each of `tokens` steps after the prompt, and the tokens `ids` themselves."""
        self._run(prompt)
        seconds, ids = [], []
        for _ in range(tokens):
            ids.append(self._likeliest())
            seconds.append(self._advance([ids[-1]]))
        return {"seconds": seconds, "ids": ids}

    def prefill(self, prompt: Sequence[int]) -> dict[str, Any]:
        """`seconds` that a prompt takes, with the logits of its last token."""
        return {"seconds": self._run(prompt), "next": self._likeliest()}

    def close(self) -> dict[str, Any]:
        """Free the model."""
        if self._context:
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._model = self._context = None
        return {}

    def _run(self, prompt: Sequence[int]) -> float:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        batch = llama_cpp.llama_n_batch(self._context)
        return sum(self._advance(prompt[at : at + batch]) for at in range(0, len(prompt), batch))

    def _advance(self, ids: Sequence[int]) -> float:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(array, len(ids))
        began = time.perf_counter()
        status = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_synchronize(self._context)
        seconds = time.perf_counter() - began
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return seconds

    def _likeliest(self) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())


if __name__ == "__main__":
    contender = LlamaCpp()
    serve({name: getattr(contender, name) for name in ("open", "decode", "prefill", "close")})
