"""The bytes of a model as the loader places them, for placement to count with. The two are tested to agree.

No torch, so that a plan is made in milliseconds.
"""

from __future__ import annotations

from hybrid.model.pages import KV_FORMATS, PAGE_TOKENS, pages_for
from hybrid.ops.limits import MOST_BUCKETS, MOST_DEALING, NATIVE_TOKENS, ROWS_AT_ONCE, DownCut, attention_splits
from hybrid.spec import ModelSpec
from hybrid.store.files import ModelFiles
from hybrid.store.layout import POSITIONS, matrix_format
from placement.cost import ModelSizes
from placement.prefill import STREAM_BUFFERS, STREAM_ROWS
from profiler.formats import vector_bytes
from profiler.predictor_outline import AnyPredictors

PREFILL_TOKENS = 256
PREFILL_CHOICES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
FP32 = 4

BUFFER_SHARE = 1 / 16  # of a budget of GPU memory that prefill may take, where that is enough for a token; and a step


def buffer_bytes(spec: ModelSpec, tokens: int, context: int, row_bytes: int) -> int:
    """Bytes that the largest step of `tokens` tokens holds at once beside weights and pages.

    fp32 states, projections, attention scores, predictor outputs and their bool map, logits of at most 16 tokens;
    beyond 16 tokens also the block of rows that is widened to fp32 and its products, and the buffers through which rows
    of `row_bytes` are streamed.
    """
    states = tokens * (6 * spec.hidden_size + 2 * spec.q_size + 2 * spec.kv_size)
    scores = spec.n_heads * tokens * context
    logits = min(tokens, NATIVE_TOKENS) * spec.vocab_size
    predicted = tokens * spec.n_neurons * (FP32 + 1)
    widened = streamed = 0
    if tokens > NATIVE_TOKENS:
        widened = ROWS_AT_ONCE * (len(spec.row_parts) * spec.hidden_size + 4 * tokens)
        streamed = STREAM_BUFFERS * stream_rows(spec) * row_bytes
    return FP32 * (states + scores + logits + widened) + predicted + streamed


def step_bytes(spec: ModelSpec, weight_format: str, context: int) -> int:
    """Bytes of GPU memory that a recorded step of up to 16 tokens holds at most beside weights and pages.

    Its inputs; fp32 states, projections, logits and angles; bool maps of rows; what attention leaves of each part of a
    text; of a layer's rows their activations, lists of those to add, sums of chunks of them, and counts; states rounded
    to 8 bits, and what lies between a predictor's matrices, of at most as many outputs as there are rows; the tally of
    rows that fire.
    """
    tokens, neurons = NATIVE_TOKENS, spec.n_neurons
    inputs = 8 * (2 * tokens + -(-tokens * pages_for(context) // 2) + 2)
    states = 8 * spec.hidden_size + 2 * spec.q_size + 2 * spec.kv_size + spec.vocab_size + spec.rotary_size
    splits = attention_splits(spec.n_heads, spec.n_kv_heads, context)
    attention = spec.n_heads * splits * (spec.head_dim + 2)
    cut = DownCut.of(weight_format, spec.hidden_size, neurons)
    dealt = neurons + 16 * cut.chunks  # also of smaller banks, whose chunks are no more
    sums = cut.chunks * cut.blocks * cut.width
    rounded = max(spec.hidden_size, spec.q_size, neurons) * 5 // 4
    lists = 2 * cut.blocks * dealt  # the tokens take two turns
    numbers = tokens * (states + attention + dealt + neurons + sums) + lists + 2 * MOST_DEALING
    tally = 8 * spec.n_layers * min(MOST_BUCKETS, neurons)
    return inputs + FP32 * numbers + tokens * (4 * neurons + rounded) + tally


def step_share(spec: ModelSpec, weight_format: str, context: int, vram: int) -> int:
    """`step_bytes`, where a budget of GPU memory is worth them; else 0, and steps are computed by torch."""
    size = step_bytes(spec, weight_format, context)
    return size if size <= vram * BUFFER_SHARE else 0


def stream_rows(spec: ModelSpec) -> int:
    """Rows of each buffer through which they are streamed."""
    return min(STREAM_ROWS, spec.n_neurons)


def row_bytes(files: ModelFiles) -> int:
    """Bytes of one row with its bias."""
    return files.stride_bytes + row_extra_bytes(files.spec)


def row_extra_bytes(spec: ModelSpec) -> int:
    """Bytes of what a row has beside its record: its bias."""
    return FP32 if spec.ffn_bias and not spec.gated else 0


def cache_bytes(spec: ModelSpec, context: int, kv_format: str) -> int:
    """Bytes of one layer's keys and values for a sequence of `context` tokens, in whole pages."""
    return pages_for(context) * PAGE_TOKENS * 2 * spec.kv_size * KV_FORMATS[kv_format]


def page_bytes(spec: ModelSpec, kv_format: str) -> int:
    """Bytes of a page of keys and values in all layers."""
    return spec.n_layers * cache_bytes(spec, PAGE_TOKENS, kv_format)


def prefill_within(spec: ModelSpec, size: int, context: int, row_bytes: int) -> int:
    """Tokens of the largest prefill step whose buffers fit `size` bytes; at least one."""
    return next((t for t in PREFILL_CHOICES if buffer_bytes(spec, t, context, row_bytes) <= size), 1)


def model_sizes(
    files: ModelFiles,
    predictors: AnyPredictors | None,
    context: int,
    vram: int,
    kv_format: str,
    gpu_context: int = 0,
    kv_pages: int | None = None,
) -> ModelSizes:
    """Everything placement has to know of a model, in bytes.

    context: tokens of a sequence. vram: the budget of GPU memory. gpu_context: what a process takes of it by being
    there (`Hardware.context`). kv_pages: see `EngineOptions`.
    """
    spec, weight_format = files.spec, files.weight_format
    norm = spec.hidden_size * FP32 * (2 if spec.norm == "layer" else 1)
    row, mixed_row = vector_bytes(weight_format, spec.hidden_size), vector_bytes(weight_format, spec.q_size)
    weights = (spec.q_size + 2 * spec.kv_size) * row + spec.hidden_size * mixed_row
    outputs = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size, "o": spec.hidden_size}
    biases = FP32 * sum(outputs[name] for name in spec.biased_projections)
    norms = norm * (1 if spec.shared_norm else 2) + (2 * FP32 * spec.head_dim if spec.qk_norm else 0)
    down_bias = FP32 * spec.hidden_size if spec.ffn_bias else 0
    vocabulary = spec.vocab_size * row
    position_row = vector_bytes(matrix_format(POSITIONS, weight_format), spec.hidden_size)
    positions = (spec.max_positions + spec.position_offset) * position_row
    named = [0] * spec.n_layers
    if predictors is not None:
        named = [p.nbytes for p in predictors.layers]
    row = row_bytes(files)
    room = int(max(0, vram - gpu_context) * BUFFER_SHARE)
    buffers = buffer_bytes(spec, prefill_within(spec, room, context, row), context, row)
    buffers += step_share(spec, weight_format, context, vram)
    return ModelSizes(
        n_layers=spec.n_layers,
        n_rows=spec.n_neurons,
        row_bytes=files.stride_bytes,
        row_extra_bytes=row_extra_bytes(spec),
        weight_format=weight_format,
        gated=spec.gated,
        attention_bytes=(weights + biases + norms + down_bias,) * spec.n_layers,
        predictor_bytes=tuple(named),
        embeddings_bytes=vocabulary,
        positions_bytes=positions if spec.positions == "learned" else 0,
        head_bytes=0 if spec.tied_embeddings else vocabulary,
        final_norm_bytes=norm,
        kv_bytes_per_token=2 * spec.kv_size * KV_FORMATS[kv_format],
        kv_page_tokens=PAGE_TOKENS,
        buffer_bytes=buffers,
        context_bytes=gpu_context,
        kv_pages=kv_pages,
    )
