"""The kernels that read weights as Triton compiles them for GPUs: they fit their registers, and read in wide pieces."""

import importlib.util
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton's assembler is for Linux"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
]
SOURCE = """
import torch
from hybrid.ops import cuda_weights
from hybrid.ops.bank import RowBank
from hybrid.ops.scratch import Scratch
from profiler.formats import vector_bytes
from profiler.matrix import DTYPES, Matrix
from profiler.predictor import Predictor

scratch = Scratch(torch.device("cpu"))

def matrix(rows, columns, weight_format):
    width = vector_bytes(weight_format, columns) // DTYPES[weight_format].itemsize
    return Matrix(torch.empty(rows, width, dtype=DTYPES[weight_format]), weight_format, columns)

def linear(tokens, hidden, weight_format, outputs=(4096, 1024, 1024)):
    x = torch.empty(tokens, hidden)
    ys = [(matrix(n, hidden, weight_format), None, torch.empty(tokens, n)) for n in outputs]
    cuda_weights.linear(x, ys, scratch)

def embed(tokens, hidden, weight_format):
    ids = torch.zeros(tokens, dtype=torch.int64)
    cuda_weights.embed(matrix(100, hidden, weight_format), ids, torch.empty(tokens, hidden))

def predict(tokens, hidden, rank, rows, weight_format):
    if rank:
        fc1, fc2 = matrix(rank, hidden, weight_format), matrix(rows, rank, weight_format)
        predictor = Predictor.low_rank(fc1, fc2, 0.5)
    else:
        predictor = Predictor.gates(matrix(rows, hidden, weight_format), 0.5)
    ids, named = torch.zeros(rows, dtype=torch.int32), torch.empty(tokens, rows, dtype=torch.bool)
    cuda_weights.predict(torch.empty(tokens, hidden), predictor, ids, named, scratch)

def ffn(tokens, hidden, rows, weight_format, activation="relu", gated=True, named=True, skip=True):
    stride = -(-(3 if gated else 2) * vector_bytes(weight_format, hidden) // 64) * 64
    memory = torch.empty(rows, stride // DTYPES[weight_format].itemsize, dtype=DTYPES[weight_format])
    bank = RowBank(memory, weight_format, hidden, gated, activation, None if gated else torch.empty(rows))
    x, counts = torch.empty(tokens, hidden), torch.zeros(2, dtype=torch.int64)
    flags = torch.empty(tokens, rows, dtype=torch.bool) if named else None
    cuda_weights.sparse_ffn(bank, x, flags, skip, torch.empty_like(x), counts, scratch)

"""
FORMATS = ("bf16", "f16", "q8_0", "q4_0")
KERNELS = {"open_kernel", "down_kernel", "join_kernel"}


def compiled(compile_calls, calls, capability=80):
    return compile_calls(SOURCE + "\n".join(calls), capability)


@pytest.mark.parametrize("weight_format", ["bf16", pytest.param("q8_0", marks=pytest.mark.slow), "q4_0"])
def test_one_token_through_the_shape_of_a_model_of_seven_billion(compile_calls, weight_format):
    calls = [f"ffn(1, 4096, 14336, '{weight_format}')", f"predict(1, 4096, 1024, 14336, '{weight_format}')"]
    kernels = compiled(compile_calls, [*calls, f"embed(1, 4096, '{weight_format}')"])
    rounding = set() if weight_format == "bf16" else {"round_kernel"}
    assert {k.name for k in kernels} == KERNELS | {"linear_kernel", "name_kernel", "embed_kernel"} | rounding
    for kernel in kernels:
        assert kernel.spilled <= 64, kernel
        # Sixteen warps of those that multiply fit a multiprocessor, and the eight that add rows.
        assert kernel.registers <= (255 if kernel.name == "down_kernel" else 128), kernel
        assert kernel.shared <= 2048, kernel
        assert kernel.widest_load >= (8 if kernel.name == "embed_kernel" else 16), kernel


def test_a_step_of_another_number_of_tokens_seldom_waits_for_the_compiler(compile_calls):
    """One kernel for 1, 2, 3 to 4 and 5 to 16 tokens, but that 1 and 16 are numbers of their own to Triton."""
    calls = [f"linear({tokens}, 64, 'bf16', (32,))" for tokens in range(1, 17)]
    assert len(compiled(compile_calls, calls)) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_all_numbers_of_tokens_fit_their_registers(compile_calls, weight_format, capability):
    calls = [
        call
        for tokens in (1, 2, 4, 8, 16)
        for call in (
            f"ffn({tokens}, 4096, 14336, '{weight_format}')",
            f"linear({tokens}, 4096, '{weight_format}')",
            f"predict({tokens}, 4096, 512, 14336, '{weight_format}')",
        )
    ]
    for kernel in compiled(compile_calls, calls, capability):
        assert kernel.spilled <= 128, kernel


@pytest.mark.slow
@pytest.mark.parametrize("weight_format", FORMATS)
def test_every_kind_of_network_and_odd_shapes_compile(compile_calls, weight_format):
    calls = [
        f"ffn({tokens}, {hidden}, 300, '{weight_format}', '{activation}', {gated}, {named}, {skip})"
        for tokens, hidden, activation, gated, named, skip in (
            (1, 96, "silu", True, True, False),
            (3, 2560, "gelu", False, False, True),
            (16, 672, "gelu_tanh", True, True, True),
            (1, 5120, "relu2", False, True, True),
            (2, 32, "drelu", True, False, False),
            (1, 8192, "relu", True, False, True),
        )
    ]
    calls += [f"predict(1, 2560, {rank}, 300, '{name}')" for rank in (0, 32, 544) for name in (weight_format, "b1")]
    calls += [f"embed(3, {hidden}, '{weight_format}')" for hidden in (32, 672)]
    calls += [f"linear(3, {hidden}, '{weight_format}', (5,))" for hidden in (32, 672)]
    for kernel in compiled(compile_calls, calls):
        assert kernel.spilled <= 512, kernel  # of vectors of a block or three, of which a warp takes many
