// The sparse feed-forward operator in its two halves: the products of rows, then their weighted sum by columns.
#pragma once

#include <math.h>

#include "sum_impl.hpp"

namespace {

using hybrid::Active;
using hybrid::Counts;
using hybrid::FfnCall;
using hybrid::max_chunk_rows;
using hybrid::max_tokens;

// Named rows lie anywhere: several at once even for one token, so that memory has several to bring.
template <class Simd, Format format, int tokens>
constexpr int named_together() { return tokens == 1 ? 4 : rows_together<Simd, format, tokens>(); }

inline float activate(hybrid::Activation activation, float v) {
  if (activation == hybrid::silu) return v / (1 + expf(-v));
  if (v <= 0) return 0;  // a NaN stays one
  return activation == hybrid::relu2 ? v * v : v;
}

// Some named rows: a value for each pair of row and token, and in the end those that are active.
template <class Simd, Format format>
class Chunk {
 public:
  Chunk(const FfnCall& call, const int32_t* rows, const uint16_t* sets, int size) : call_(call), size_(size) {
    for (int i = 0; i < size; ++i) rows_[i] = rows[i], sets_[i] = sets[i];
  }

  int run(Active active, Counts* counts) {
    counts->gated += pairs(0, size_);
    project(0, false);
    activate_and_compact();
    counts->finished += pairs(0, size_);
    if (call_.gated) project(1, true);
    for (int i = 0; i < size_; ++i) {
      active.rows[i] = rows_[i], active.sets[i] = sets_[i];
      for (int t = 0; t < call_.in.tokens; ++t) active.values[i * call_.in.tokens + t] = values_[i][t];
    }
    return size_;
  }

 private:
  Bytes vector(int64_t i, int part) const {
    return call_.rows + rows_[smaller(i, size_ - 1)] * call_.stride_bytes + part * call_.vector_bytes;
  }

  int pairs(int first, int last) const {
    int count = 0;
    for (int i = first; i < last; ++i) count += __builtin_popcount(sets_[i]);
    return count;
  }

  void put(int i, int t, float dot, bool multiply) {
    if (sets_[i] >> t & 1) values_[i][t] = multiply ? values_[i][t] * dot : dot;
  }

  // values[i][t] = (or *=) part_i . x_t for every pair.
  void project(int part, bool multiply) {
    constexpr int T = Simd::token_block;
    if (call_.in.tokens == 1) {
      for (int i = 0; i < size_; i += named_together<Simd, format, 1>()) project_rows<1>(i, part, 0, multiply);
      return;
    }
    constexpr int R = named_together<Simd, format, T>();
    for (int i = 0; i < size_; i += R) {
      const int end = static_cast<int>(smaller(i + R, size_));
      if (2 * pairs(i, end) > (end - i) * call_.in.tokens) {  // all pairs cost less than picking the needed
        for (int t = 0; t < call_.in.tokens; t += T) project_rows<T>(i, part, t, multiply);
      } else {
        for (int k = i; k < end; ++k) project_scattered(k, part, multiply);
      }
    }
  }

  // The rows from i on, for T tokens from t on. A short group repeats its last row: no more bytes, one loop.
  template <int T>
  void project_rows(int i, int part, int t, bool multiply) {
    constexpr int R = named_together<Simd, format, T>();
    const int64_t ahead = rows_ahead(call_.vector_bytes, R);
    Bytes w[R], next[R];
    for (int r = 0; r < R; ++r) w[r] = vector(i + r, part), next[r] = vector(i + r + ahead, part);
    int tokens[T];
    float dots[R][T];
    for (int k = 0; k < T; ++k) tokens[k] = static_cast<int>(smaller(t + k, call_.in.tokens - 1));
    dot<Simd, format, R, T>(w, call_.in, tokens, next, dots);
    for (int r = 0; r < R && i + r < size_; ++r)
      for (int k = 0; k < T && t + k < call_.in.tokens; ++k) put(i + r, t + k, dots[r][k], multiply);
  }

  void project_scattered(int i, int part, bool multiply) {
    constexpr int T = Simd::token_block;
    int tokens[max_tokens + T], count = 0;
    for (int t = 0; t < call_.in.tokens; ++t)
      if (sets_[i] >> t & 1) tokens[count++] = t;
    for (int k = 0; k < T; ++k) tokens[count + k] = tokens[count - 1];
    for (int k = 0; k < count; k += T) {
      const Bytes w[1] = {vector(i, part)}, next[1] = {vector(i + rows_ahead(call_.vector_bytes, 2), part)};
      int some[T];
      float dots[1][T];
      for (int m = 0; m < T; ++m) some[m] = tokens[k + m];
      dot<Simd, format, 1, T>(w, call_.in, some, next, dots);
      for (int m = 0; m < T && k + m < count; ++m) put(i, some[m], dots[0][m], multiply);
    }
  }

  // Applies the activation and keeps the pairs that go on, in order. The value of every other pair becomes zero.
  void activate_and_compact() {
    int kept = 0;
    for (int i = 0; i < size_; ++i) {
      const float bias = call_.bias ? call_.bias[rows_[i]] : 0;
      uint32_t set = 0;
      for (int t = 0; t < call_.in.tokens; ++t) {
        const bool wanted = sets_[i] >> t & 1;
        const float a = wanted ? activate(call_.activation, values_[i][t] + bias) : 0;
        values_[kept][t] = a;
        if (wanted && !(call_.skip_inactive && a == 0)) set |= 1u << t;
      }
      rows_[kept] = rows_[i];
      sets_[kept] = static_cast<uint16_t>(set);
      kept += set != 0;
    }
    size_ = kept;
  }

  const FfnCall& call_;
  int size_;
  int32_t rows_[max_chunk_rows];
  uint16_t sets_[max_chunk_rows];  // the tokens that need the row
  float values_[max_chunk_rows][max_tokens];
};

template <class Simd, Format format>
int64_t ffn_rows(const FfnCall& call, const int32_t* rows, const uint16_t* sets, int64_t count, Active active,
                 Counts* counts) {
  return Chunk<Simd, format>(call, rows, sets, static_cast<int>(count)).run(active, counts);
}

// One token's rows of the tile that begins at `first` among `count` active ones, and in their order those of the next.
inline void fill(const FfnCall& call, const Active& active, int64_t first, int64_t count, int token, Tile& out) {
  const int64_t down = (call.gated ? 2 : 1) * call.vector_bytes, last = smaller(first + tile, count);
  const int tokens = call.in.tokens;
  out.count = 0;
  for (int64_t i = first; i < last; ++i) {
    if (tokens > 1 && !(active.sets[i] >> token & 1)) continue;
    out.rows[out.count] = call.rows + active.rows[i] * call.stride_bytes + down;
    out.next[out.count] = call.rows + active.rows[smaller(i + tile, count - 1)] * call.stride_bytes + down;
    out.factors[out.count++] = active.values[i * tokens + token];
  }
}

template <class Simd, Format format>
void sum_halves(const FfnCall& call, const Active& active, int64_t count, int64_t first, int64_t last, float* y) {
  const int64_t width = call.in.width, from = first * unit_columns, to = smaller(last * unit_columns, width);
  for (int t = 0; t < call.in.tokens; ++t) memset(y + t * width + from, 0, (to - from) * sizeof(float));
  Tile rows;
  for (int64_t i = 0; i < count; i += tile) {
    for (int t = 0; t < call.in.tokens; ++t) {
      fill(call, active, i, count, t, rows);
      if (rows.count) add_halves<Simd, format>(rows, y + t * width, from, to);
    }
  }
}

template <class Simd, Format format>
void sum_blocks(const FfnCall& call, const Active& active, int64_t count, int64_t first, int64_t last, float* y) {
  constexpr int units = 8, size = (parts<format>() + 1) * hybrid::group_blocks;
  const int64_t width = call.in.width;
  for (; first < last; first += units) {
    const int some = static_cast<int>(smaller(units, last - first));
    Unit at[units];
    for (int u = 0; u < some; ++u) at[u] = unit_at<format>(first + u, width);
    float sums[max_tokens][units * size];
    memset(sums, 0, call.in.tokens * sizeof sums[0]);
    Tile rows;
    for (int64_t i = 0; i < count; i += tile) {
      for (int t = 0; t < call.in.tokens; ++t) {
        fill(call, active, i, count, t, rows);
        if (!rows.count) continue;
        for (int r = 0; r < rows.count; ++r)
          __builtin_prefetch(rows.next[r] + quant_bytes<format>(width) + 2 * at[0].first_block);
        for (int u = 0; u < some; ++u) add_unit<Simd, format>(rows, at[u], width, sums[t] + u * size);
      }
    }
    for (int t = 0; t < call.in.tokens; ++t)
      for (int u = 0; u < some; ++u) spread<Simd, format>(at[u], sums[t] + u * size, y + t * width);
  }
}

template <class Simd, Format format>
void ffn_columns(const FfnCall& call, Active active, int64_t count, int64_t first, int64_t last, float* y) {
  if constexpr (in_blocks(format)) sum_blocks<Simd, format>(call, active, count, first, last, y);
  else sum_halves<Simd, format>(call, active, count, first, last, y);
}

}  // namespace
