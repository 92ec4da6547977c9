"""Types of the native extension (`hybrid/ops/native/module*.cpp`). Pointers are addresses, as `data_ptr()` gives.

Operators check their arguments and raise ValueError, and release the interpreter lock while they compute. `sparse_ffn`
and `linear` keep no pointer after they return; a `Program` keeps those it was given. The caller keeps the memory alive.
"""

BF16: int
F16: int
Q8_0: int
Q4_0: int
B1: int
F32: int
RELU: int
RELU2: int
SILU: int
GELU: int
GELU_TANH: int
DRELU: int
MAX_TOKENS: int

# Of a matrix in a program: address, bytes from row to row, format, outputs, bias (0 without one), outputs' buffer.
MatrixArguments = tuple[int, int, int, int, int, int]

class Pool:
    """Persistent threads, of which the calling one is the first; calls from several threads take turns."""

    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Program:
    """Operators of one step, recorded once. Buffers are fp32 `[MAX_TOKENS, width]`; a run uses their first tokens."""

    def __init__(self) -> None: ...
    def embed(self, weight: int, stride_bytes: int, weight_format: int, width: int, y: int) -> None: ...
    def add_positions(
        self, weight: int, stride_bytes: int, weight_format: int, width: int, offset: int, y: int
    ) -> None: ...
    def angles(self, frequencies: int, half: int, cosines: int, sines: int) -> None: ...
    def norm(
        self, centred: bool, x: int, weight: int, bias: int, width: int, vectors: int, eps: float, y: int
    ) -> None: ...
    def linear(self, pool: Pool, x: int, width: int, matrices: list[MatrixArguments]) -> None: ...
    def rotate(self, x: int, heads: int, head_dim: int, rotary: int, cosines: int, sines: int) -> None: ...
    def store(self, k: int, v: int, keys: int, values: int, page_format: int, kv_heads: int, head_dim: int) -> None: ...
    def attention(
        self,
        pool: Pool,
        q: int,
        keys: int,
        values: int,
        page_format: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int,
        y: int,
    ) -> None: ...
    def add(self, a: int, b: int, width: int, y: int) -> None: ...
    def add_vector(self, vector: int, width: int, y: int) -> None: ...
    def predict(
        self,
        pool: Pool,
        fc1: MatrixArguments | None,
        rectified: bool,
        fc2: MatrixArguments,
        threshold: float,
        neuron_ids: int,
        x: int,
        hidden: int,
        named: int,
    ) -> None: ...
    def sparse_ffn(
        self,
        pool: Pool,
        rows: int,
        stride_bytes: int,
        n_rows: int,
        hidden: int,
        weight_format: int,
        gated: bool,
        activation: int,
        cutoff: float,
        skip_inactive: bool,
        bias: int,
        x: int,
        named: int,
        named_stride: int,
        more: bool,
        y: int,
        counts: int,
        activations: int = 0,
        activations_stride: int = 0,
    ) -> None: ...
    @property
    def seconds(self) -> dict[str, float]:
        """What all runs took, by kind of operator."""

    def run(self, tokens: int, ids: int, positions: int, blocks: int) -> float:
        """One step; the seconds that it took."""

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
    cutoff: float,
    skip_inactive: bool,
    bias: int,
    x: int,
    tokens: int,
    named: int,
    named_stride: int,
    y: int,
    counts: int,
    activations: int = 0,
    activations_stride: int = 0,
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
def greatest(x: int, n: int) -> int:
    """The place of the greatest of `n` floats, the first of equals; -1 where one is not finite."""

def guard_mapping(address: int, length: int, path: str) -> int: ...
def unguard_mapping(handle: int) -> None: ...
def _count_tasks(pool: Pool, tasks: int, failing: int = -1) -> int: ...
