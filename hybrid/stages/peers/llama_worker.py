"""llama.cpp as a contender, through the low-level calls of llama-cpp-python: `llama_decode` alone is timed.

Runs in an interpreter that need not have anything of this project's but that package, and numpy with it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from hybrid.stages.peers.protocol import serve

FFN_TENSORS = rb"\.ffn_(up|down|gate)\.weight$"  # a regular expression over names in GGUF files


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Drops llama.cpp's log."""


class _Override(ctypes.Structure):
    """`llama_model_tensor_buft_override`, for which the package has no class: tensors by name, and where they go."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class LlamaCpp:
    """One model with one context."""

    def __init__(self) -> None:
        llama_cpp.llama_log_set(_silent, None)
        llama_cpp.llama_backend_init()
        self._model = self._context = None
        self._vocab = 0
        self._overrides: Any = None  # llama.cpp reads it while it loads

    def open(
        self,
        path: str,
        threads: int,
        context: int,
        *,
        gpu_layers: int = 0,
        ffn_on_cpu: bool = False,
        flash_attention: bool | None = None,
        mmap: bool = True,
        batch: int = 512,
    ) -> dict[str, Any]:
        """Load a GGUF file with a context of so many tokens, in place of what was open; keys and values in f16.

        gpu_layers: as `-ngl`, the head's included. flash_attention: None leaves it to llama.cpp. batch: tokens of a
        prompt that are computed together.

        Raises:
            RuntimeError: this build lacks what is asked for, or cannot load the file.
        """
        self.close()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = gpu_layers
        if gpu_layers and not llama_cpp.llama_supports_gpu_offload():
            raise RuntimeError("this llama-cpp-python was built without a GPU backend")
        if ffn_on_cpu:
            self._overrides = _on_cpu(model)
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
        if flash_attention is not None and hasattr(params, "flash_attn_type"):
            params.flash_attn_type = int(flash_attention)
        elif flash_attention is not None:
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
            "vocabulary": self._vocab,
        }

    def decode(self, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        """Greedy: `seconds` of each of `tokens` steps after the prompt, and the tokens `ids` themselves.

        first_token_seconds: what the prompt took, with choosing the token that follows it.
        """
        began = time.perf_counter()
        self._run(prompt)
        ids = [self._likeliest()]
        first = time.perf_counter() - began
        seconds = list[float]()
        while len(seconds) < tokens:
            seconds.append(self._advance(ids[-1:]))
            ids.append(self._likeliest())
        return {"first_token_seconds": first, "seconds": seconds, "ids": ids[:-1]}

    def prefill(self, prompt: Sequence[int]) -> dict[str, Any]:
        """`seconds` that a prompt takes, with the logits of its last token."""
        return {"seconds": self._run(prompt), "next": self._likeliest()}

    def score(self, ids: Sequence[int]) -> dict[str, Any]:
        """`loss`: summed over a text's predicted tokens, in nats; `likeliest`: the token expected in the place of each.

        Raises:
            RuntimeError: llama.cpp could not compute it.
        """
        self._forget()
        size = llama_cpp.llama_n_batch(self._context)
        loss, likeliest = 0.0, list[int]()
        batch = llama_cpp.llama_batch_init(size, 0, 1)
        try:
            for at in range(0, len(ids), size):
                piece = ids[at : at + size]
                self._fill(batch, piece, at)
                if status := llama_cpp.llama_decode(self._context, batch):
                    raise RuntimeError(f"llama_decode returned {status}")
                for i, target in enumerate(ids[at + 1 : at + 1 + len(piece)]):
                    logits = self._logits(i).astype(np.float64)
                    highest = logits.max()
                    loss += highest + float(np.log(np.exp(logits - highest).sum())) - logits[target]
                    likeliest.append(int(logits.argmax()))
        finally:
            llama_cpp.llama_batch_free(batch)
        return {"loss": float(loss), "likeliest": likeliest}

    def close(self) -> dict[str, Any]:
        """Free the model."""
        if self._context:
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._model = self._context = None
        return {}

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def _run(self, prompt: Sequence[int]) -> float:
        self._forget()
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

    def _fill(self, batch: Any, ids: Sequence[int], first: int) -> None:
        """Tokens of one sequence, of whom each one's logits are wanted, from a position on."""
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, first + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1

    def _logits(self, index: int) -> npt.NDArray[np.float32]:
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, index), (self._vocab,))

    def _likeliest(self) -> int:
        return int(self._logits(-1).argmax())


def _on_cpu(model: Any) -> Any:
    """Have the FFN's matrices stay in host memory, and be computed there; the list that says so, which has to last."""
    library = llama_cpp.llama_cpp._lib
    if not (hasattr(model, "tensor_buft_overrides") and hasattr(library, "ggml_backend_cpu_buffer_type")):
        raise RuntimeError("this llama-cpp-python cannot say where single tensors go")
    library.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    overrides = (_Override * 2)(_Override(FFN_TENSORS, library.ggml_backend_cpu_buffer_type()), _Override(None, None))
    model.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    return overrides


if __name__ == "__main__":
    contender = LlamaCpp()
    serve({name: getattr(contender, name) for name in ("open", "decode", "prefill", "score", "close")})
