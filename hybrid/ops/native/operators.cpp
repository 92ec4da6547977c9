#include "operators.hpp"

#include <algorithm>

#include "dispatch.hpp"

namespace hybrid {
namespace {

constexpr int64_t chunks_wanted = 64;     // enough for unequal cores to end together, few enough to add up quickly
constexpr int64_t min_chunk_rows = 64;
constexpr int64_t columns = 256;          // of the output, added up at a time
constexpr int64_t linear_bytes = 1 << 17; // of weights in one task

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Chunk {
  Counts counts;
  uint32_t written;  // the tokens whose partial sum there is
};

// y[first..last) of one token = the partial sums of its chunks, in the chunks' order.
void add_up(const Chunk* chunks, const float* partials, int64_t n_chunks, int64_t stride, int token, int64_t first,
            int64_t last, float* y) {
  float sums[columns] = {};
  for (int64_t c = 0; c < n_chunks; ++c) {
    if (!(chunks[c].written >> token & 1)) continue;
    const float* partial = partials + c * stride;
    for (int64_t j = first; j < last; ++j) sums[j - first] += partial[j];
  }
  std::copy(sums, sums + (last - first), y + first);
}

}  // namespace

Counts sparse_ffn(Pool& pool, const FfnCall& call, WeightFormat format, float* y) {
  // The chunks depend on the sizes alone, never on the threads, the tokens or what is named: so does the result.
  const int64_t wanted = divide_up(divide_up(call.n_rows, chunks_wanted), 16) * 16;
  const int64_t chunk_rows = std::clamp<int64_t>(wanted, min_chunk_rows, max_chunk_rows);
  const int64_t n_chunks = divide_up(call.n_rows, chunk_rows);
  const int64_t stride = call.tokens * call.hidden;

  Pool::Turn turn(pool);
  const std::size_t head = divide_up(n_chunks * sizeof(Chunk), 64) * 64;
  char* scratch = static_cast<char*>(turn.scratch(head + n_chunks * stride * sizeof(float)));
  Chunk* chunks = reinterpret_cast<Chunk*>(scratch);
  float* partials = reinterpret_cast<float*>(scratch + head);

  const auto ffn_chunk = kernels().ffn_chunk[format];
  turn.run(n_chunks, [&](int64_t c) {
    chunks[c].counts = {0, 0};
    chunks[c].written = ffn_chunk(call, c * chunk_rows, std::min((c + 1) * chunk_rows, call.n_rows),
                                  partials + c * stride, &chunks[c].counts);
  });
  const int64_t blocks = divide_up(call.hidden, columns);
  turn.run(blocks * call.tokens, [&](int64_t task) {
    const int token = static_cast<int>(task / blocks);
    const int64_t first = task % blocks * columns, last = std::min(first + columns, call.hidden);
    add_up(chunks, partials + token * call.hidden, n_chunks, stride, token, first, last, y + token * call.hidden);
  });
  Counts total = {0, 0};
  for (int64_t c = 0; c < n_chunks; ++c) {
    total.gated += chunks[c].counts.gated;
    total.finished += chunks[c].counts.finished;
  }
  return total;
}

void linear(Pool& pool, const LinearCall& call, WeightFormat format) {
  const int64_t outputs = std::max<int64_t>(linear_bytes / (2 * call.in_features) / 4 * 4, 4);
  const auto linear_rows = kernels().linear_rows[format];
  Pool::Turn turn(pool);
  turn.run(divide_up(call.out_features, outputs), [&](int64_t task) {
    linear_rows(call, task * outputs, std::min((task + 1) * outputs, call.out_features));
  });
}

}  // namespace hybrid
