"""The states' kernels as Triton compiles them for GPUs: they fit their registers, and read memory in wide pieces."""

import importlib.util
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton's assembler is for Linux"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
]
SOURCE = """
import torch
from types import SimpleNamespace
from hybrid.ops import cuda_states
from hybrid.ops.scratch import Scratch

def call(tokens, kv_heads, shared, head_dim, dtype, context, window=None):
    cache = torch.zeros(2, kv_heads, 16, head_dim, dtype=dtype)
    pages = SimpleNamespace(keys=cache, values=cache)
    q, k = torch.zeros(tokens, kv_heads * shared, head_dim), torch.zeros(tokens, kv_heads, head_dim)
    positions = torch.zeros(tokens, dtype=torch.int64)
    tables = torch.zeros(tokens, context // 16, dtype=torch.int32)
    cuda_states.store(k, k, pages, positions, tables)
    cuda_states.attend(q, pages, positions, tables, window, q, Scratch(torch.device("cpu")), context)
    angles = torch.zeros(tokens, head_dim // 2)
    cuda_states.rotate(q, angles, angles)

def normalise(tokens, vectors, width, centred):
    x, weight = torch.zeros(tokens, vectors, width), torch.ones(width)
    cuda_states.norm(x, weight, weight if centred else None, centred, 1e-5, x)
"""
SHAPES = [  # key-value heads, query heads of each, head_dim: Mistral, Llama 7B, Falcon 40B and 7B, OPT 2.7B, Gemma
    (8, 4, 128),
    (32, 1, 128),
    (8, 16, 64),
    (1, 71, 64),
    (32, 1, 80),
    (4, 2, 256),
]


def check(kernels):
    for kernel in kernels:
        assert kernel.spilled <= 64, kernel
        assert kernel.shared <= 16 << 10, kernel
        assert kernel.widest_load >= 8, kernel


def test_the_shape_of_a_model_of_seven_billion(compile_calls):
    kernels = compile_calls(f"{SOURCE}call(1, 8, 4, 128, torch.float16, 4096)\nnormalise(1, 1, 4096, False)")
    assert {k.name for k in kernels} == {"store_kernel", "attend_kernel", "join_kernel", "rotate_kernel", "norm_kernel"}
    check(kernels)
    assert all(kernel.widest_load == 16 and kernel.spilled == 0 and kernel.registers <= 128 for kernel in kernels)


def test_a_kernel_is_compiled_once_for_all_numbers_of_tokens(compile_calls):
    """So that a step of another number of tokens waits for no compiler."""
    calls = [
        f"call({tokens}, 2, 2, 32, torch.float16, 256, 100)\nnormalise({tokens}, 4, 32, True)" for tokens in (1, 2, 16)
    ]
    assert len(compile_calls(f"{SOURCE}{chr(10).join(calls)}")) == 5


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_shapes_of_models(compile_calls, capability, dtype):
    calls = [f"call(4, {', '.join(map(str, shape))}, torch.{dtype}, 4096)" for shape in SHAPES]
    calls += [
        f"normalise(4, {vectors}, {width}, {width == 5120})" for vectors, width in ((1, 5120), (1, 8192), (32, 128))
    ]
    check(compile_calls(f"{SOURCE}{chr(10).join(calls)}", capability))
