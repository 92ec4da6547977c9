"""Types of the native extension (`hybrid/ops/native/module*.cpp`). Pointers are addresses, as `data_ptr()` gives.

Operators check their arguments and raise ValueError, and release the interpreter lock while they compute. `sparse_ffn`
and `linear` keep no pointer after they return; a `Program` keeps those it was given. The caller keeps the memory alive.
"""

from collections.abc import Sequence

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
MAX_SLOWDOWN: float

# Of a matrix in a program: address, bytes from row to row, format, outputs, bias (0 without one), outputs' buffer.
MatrixArguments = tuple[int, int, int, int, int, int]

class Pool:
    """Persistent threads, of which the calling one is the first; calls from several threads take turns.

    It stands for a unit: what is computed with it takes `slowdown` times as long as it did, and is computed on `cores`
    (numbers of CPUs; none leaves threads where they are). The calling thread is there while it computes, and afterwards
    where it was before.
    """

    def __init__(self, threads: int, slowdown: float = 1.0, cores: Sequence[int] = ()) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def slowdown(self) -> float: ...
    @property
    def cores(self) -> list[int]: ...
    @property
    def waits(self) -> int:
        """Pieces of work that were followed by a wait, because the pool is slowed."""

    @property
    def worked_seconds(self) -> float:
        """What those took."""

    @property
    def waited_seconds(self) -> float:
        """What was waited after them: never less than slowdown - 1 times as long."""

    def linger(self, seconds: float) -> None:
        """Wait as after a piece of work that took so long and ended now; a signal's exception ends the wait."""

    def rest(self) -> None:
        """End the threads until there is work again. Nothing is computed meanwhile."""

class Signal:
    """A count that one thread raises and another waits for, without the interpreter lock."""

    def __init__(self) -> None: ...
    def notify(self) -> None:
        """Count one more."""

    def wait(self, times: int) -> None:
        """Return once so many were counted in all; nothing interrupts it."""

    def wait_for(self, times: int, seconds: float) -> bool:
        """As `wait`, but at most about so long; whether they were counted."""

class Lane:
    """A thread that programs are handed over to, one at a time."""

    def __init__(self) -> None: ...
    def join(self) -> None:
        """Wait for the `HostFunction` that was submitted."""

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
        tally: int = 0,
        bucket_rows: int = 1,
        first_row: int = 0,
    ) -> None: ...
    def request(
        self,
        rows: int,
        stride_bytes: int,
        row_bytes: int,
        n_rows: int,
        named: int,
        named_stride: int,
        lane: Lane | None = None,
    ) -> None:
        """Ask the system to read rows that some token names and that are not in memory; nobody waits for them.

        With a lane its thread asks, once it has done what it was given before; a run ends when all have asked. Where
        rows are always in memory, it looks ever less often.
        """

    @property
    def requested(self) -> int:
        """Bytes that the drive had to read for all runs' requests."""

    def computed_by(self, pool: Pool) -> None:
        """Operators recorded without a pool belong to this one's unit from here on: to its cores, and its slowness."""

    def hand_over(self, lane: Lane, far: Program) -> None:
        """Start another program with the same step on the lane's thread."""

    def wait(self, lane: Lane) -> None:
        """Wait until the lane has done what it was given: what was handed over, before the join, or a request."""

    def join(self, lane: Lane) -> None:
        """Wait for what was handed over; raises what it raised, once for the whole run."""

    def _fail(self, address: int) -> None: ...
    def mark(self, layer: int) -> None:
        """What is recorded from here on belongs to this layer; to none where it is -1."""

    def note(self, wanted: bool) -> None:
        """Whether runs note when operators began and ended, those of the programs that they hand over too."""

    @property
    def notes(self) -> list[tuple[str, int, Pool | None, float, float]]:
        """Kind, layer, pool, begin and end, in seconds of `time.perf_counter`, of each operator of the last run.

        The pool is that of the unit whose operator it is, if that is known. A run that failed notes what it got to.
        """

    @property
    def seconds(self) -> dict[str, float]:
        """What all runs took, by kind of operator."""

    @property
    def overlap(self) -> tuple[float, float, float, float, float]:
        """Seconds of the last run between hand-overs and joins, summed over these.

        What operators of this program took, those of the other, how long this one waited for it, the smaller of both
        sides, and what of that was hidden: for so long both computed.
        """

    def run(self, tokens: int, ids: int, positions: int, blocks: int) -> float:
        """One step; the seconds that it took.

        Signals are handled within it, at most a twentieth of a second after the operator that they find under way: an
        exception of their handlers ends the step.
        """

class HostStep:
    """What the programs of a step share that a device's driver calls, one after the other.

    tokens, ids, positions, blocks: where each of them finds its step: the number of tokens, and arrays as `Program.run`
    takes them.
    """

    def __init__(self, tokens: int, ids: int, positions: int, blocks: int) -> None: ...
    def take_failure(self) -> None:
        """Raise what a call failed with since this was last asked for; until then no other call does anything."""

    def close(self) -> None:
        """Wait for a call that is under way; those that still come do nothing. A closed step stays closed."""

class HostFunction:
    """A program as a driver calls it: `function(context)` in C, both as addresses. It keeps the program and the step.

    Whoever gave them to a driver keeps this object until the driver is done with it.
    """

    def __init__(self, step: HostStep, program: Program) -> None: ...
    @property
    def function(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def seconds(self) -> float:
        """What all calls took."""

    @property
    def span(self) -> tuple[float, float]:
        """When the last call began and ended, in seconds of the clock that `time.perf_counter` reads."""

    def run(self) -> None:
        """Call it here and now; a failure is kept for `HostStep.take_failure`."""

    def submit(self, lane: Lane) -> None:
        """Call it on the lane's thread, until `Lane.join`; at most one is under way there."""

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
    tally: int = 0,
    bucket_rows: int = 1,
    first_row: int = 0,
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

def ask_for(address: int, bytes: int) -> int:
    """Ask the system to read what of a mapped range is not in memory; the bytes that it has to. Nobody waits."""

def explain_bus_errors() -> None:
    """From now on any mapped file that shrinks ends the process with one line that names it, and 1 (Linux)."""

def guard_mapping(address: int, length: int, path: str) -> int: ...
def unguard_mapping(handle: int) -> None: ...
def _count_tasks(pool: Pool, tasks: int, failing: int = -1) -> int: ...
