"""Types of the native extension (`hybrid/ops/native/module.cpp`). Pointers are addresses, as `Tensor.data_ptr()` gives.

Operators check their arguments and raise ValueError, release the interpreter lock while they compute, and keep no
pointer after they return. The caller keeps the memory alive meanwhile.
"""

BF16: int
F16: int
RELU: int
SILU: int
MAX_TOKENS: int

class Pool:
    """Persistent threads, of which the calling one is the first; calls from several threads take turns."""

    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

def isa() -> str: ...
def supported_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def sparse_ffn(
    pool: Pool,
    rows: int,
    stride_bytes: int,
    n_rows: int,
    hidden: int,
    weight_format: int,
    gated: bool,
    activation: int,
    skip_inactive: bool,
    bias: int,
    x: int,
    tokens: int,
    named: int,
    named_stride: int,
    y: int,
    counts: int,
) -> None: ...
def linear(
    pool: Pool,
    weight: int,
    stride_bytes: int,
    weight_format: int,
    out_features: int,
    in_features: int,
    bias: int,
    x: int,
    tokens: int,
    y: int,
) -> None: ...
def guard_mapping(address: int, length: int, path: str) -> int: ...
def unguard_mapping(handle: int) -> None: ...
def _count_tasks(pool: Pool, tasks: int, failing: int = -1) -> int: ...
