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
constexpr int named_together = 4;

inline float activate(hybrid::Activation activation, float v) {
  constexpr float root_half = 0.70710678f, root_two_over_pi = 0.79788456f;
  if (activation == hybrid::silu) return v / (1 + expf(-v));
  if (activation == hybrid::gelu) return 0.5f * v * (1 + erff(v * root_half));
  if (activation == hybrid::gelu_tanh) return 0.5f * v * (1 + tanhf(root_two_over_pi * (v + 0.044715f * v * v * v)));
  if (v <= 0) return 0;  // a NaN stays one
  return activation == hybrid::relu2 ? v * v : v;
}

inline float cut(float a, float cutoff) { return fabsf(a) <= cutoff ? 0 : a; }  // a NaN stays one

// Some named rows: a value for each pair of row and token, and in the end those that are active.
template <class Simd, Format format>
class Chunk {
 public:
  // `later` rows follow these in the array, and come next.
  Chunk(const FfnCall& call, const int32_t* rows, const uint16_t* sets, int size, int64_t later)
      : call_(call), size_(size), later_rows_(rows + size), later_(later) {
    for (int i = 0; i < size; ++i) rows_[i] = rows[i], sets_[i] = sets[i];
  }

  int run(Active active, Counts* counts) {
    counts->gated += pairs(0, size_);
    project(0, false);
    compact([this](float dot, int64_t row) {
      return cut(activate(call_.activation, dot + (call_.bias ? call_.bias[row] : 0)), call_.cutoff);
    });
    counts->finished += pairs(0, size_);
    if (call_.gated) project(1, true);
    if (call_.activation == hybrid::drelu) compact([](float product, int64_t) { return activate(hybrid::relu, product); });
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

  // What is read when row i would be: past the last, the first vectors of the rows that come next.
  Bytes upcoming(int64_t i, int part) const {
    if (i < size_ || !later_) return vector(i, part);
    return call_.rows + later_rows_[smaller(i - size_, later_ - 1)] * call_.stride_bytes;
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
    if (call_.in.tokens == 1) {
      for (int i = 0; i < size_; i += named_together) project_rows<named_together, 1>(i, part, 0, 0, 1, multiply);
      return;
    }
    constexpr int R = rows_together<Simd, format>(), most = tokens_together<Simd, format>();
    const int turns = static_cast<int>(divide_up(call_.in.tokens, most));
    for (int i = 0; i < size_; i += R) {
      const int end = static_cast<int>(smaller(i + R, size_));
      if (2 * pairs(i, end) > (end - i) * call_.in.tokens) {  // all pairs cost less than picking the needed
        by_tokens<most>(call_.in.tokens,
                        [&](auto T, int t) { project_rows<R, T>(i, part, t, t / most, turns, multiply); });
      } else {
        for (int k = i; k < end; ++k) project_scattered(k, part, multiply);
      }
    }
  }

  // R rows from i on, for T tokens from t on. A short group repeats its last row: no more bytes, one loop.
  template <int R, int T>
  void project_rows(int i, int part, int t, int turn, int turns, bool multiply) {
    const int64_t later = rows_ahead(call_.vector_bytes, R);
    Bytes w[R], next[R];
    for (int r = 0; r < R; ++r) w[r] = vector(i + r, part), next[r] = upcoming(i + r + later, part);
    int tokens[T];
    float dots[R][T];
    for (int k = 0; k < T; ++k) tokens[k] = static_cast<int>(smaller(t + k, call_.in.tokens - 1));
    dot<Simd, format, R, T>(w, call_.in, tokens, Ahead(w, next, call_.vector_bytes, turn, turns), dots);
    for (int r = 0; r < R && i + r < size_; ++r)
      for (int k = 0; k < T && t + k < call_.in.tokens; ++k) put(i + r, t + k, dots[r][k], multiply);
  }

  // One row for the tokens of its set alone.
  void project_scattered(int i, int part, bool multiply) {
    constexpr int most = tokens_together<Simd, format>();
    int tokens[max_tokens + most], count = 0;
    for (int t = 0; t < call_.in.tokens; ++t)
      if (sets_[i] >> t & 1) tokens[count++] = t;
    for (int k = 0; k < most; ++k) tokens[count + k] = tokens[count - 1];
    const int turns = static_cast<int>(divide_up(count, most));
    const Bytes w[1] = {vector(i, part)}, next[1] = {upcoming(i + rows_ahead(call_.vector_bytes, 2), part)};
    by_tokens<most>(count, [&](auto T, int k) {
      int some[T];
      float dots[1][T];
      for (int m = 0; m < T; ++m) some[m] = tokens[k + m];
      dot<Simd, format, 1, T>(w, call_.in, some, Ahead(w, next, call_.vector_bytes, k / most, turns), dots);
      for (int m = 0; m < T && k + m < count; ++m) put(i, some[m], dots[0][m], multiply);
    });
  }

  // Applies f to the values and keeps the pairs that go on, in order. The value of every other pair becomes zero.
  template <class F>
  void compact(const F& f) {
    int kept = 0;
    for (int i = 0; i < size_; ++i) {
      uint32_t set = 0;
      for (int t = 0; t < call_.in.tokens; ++t) {
        const bool wanted = sets_[i] >> t & 1;
        const float a = wanted ? f(values_[i][t], rows_[i]) : 0;
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
  const int32_t* later_rows_;
  int64_t later_;
  int32_t rows_[max_chunk_rows];
  uint16_t sets_[max_chunk_rows];  // the tokens that need the row
  float values_[max_chunk_rows][max_tokens];
};

template <class Simd, Format format>
int64_t ffn_rows(const FfnCall& call, const int32_t* rows, const uint16_t* sets, int64_t count, int64_t later,
                 Active active, Counts* counts) {
  return Chunk<Simd, format>(call, rows, sets, static_cast<int>(count), later).run(active, counts);
}

// The rows that T tokens from t on need, of the tile that begins at `first` among `count` active ones, and in their order
// those of the next. A token's factor is zero for a row that only its neighbours need, which changes no bit of its sum.
template <int T>
inline void fill(const FfnCall& call, const Active& active, int64_t first, int64_t count, int t, Tile<T>& out) {
  const int64_t down = (call.gated ? 2 : 1) * call.vector_bytes, last = smaller(first + tile, count);
  const int tokens = call.in.tokens;
  const uint32_t wanted = ((1u << T) - 1) << t;
  out.count = 0;
  for (int64_t i = first; i < last; ++i) {
    if (tokens > 1 && !(active.sets[i] & wanted)) continue;
    out.rows[out.count] = call.rows + active.rows[i] * call.stride_bytes + down;
    out.next[out.count] = call.rows + active.rows[smaller(i + tile, count - 1)] * call.stride_bytes + down;
    for (int k = 0; k < T; ++k)
      out.factors[out.count][k] = t + k < tokens ? active.values[i * tokens + t + k] : 0;
    ++out.count;
  }
}

template <class Simd, Format format>
void sum_halves(const FfnCall& call, const Active& active, int64_t count, int64_t first, int64_t last, float* y) {
  const int64_t width = call.in.width, from = first * unit_columns, to = smaller(last * unit_columns, width);
  for (int t = 0; t < call.in.tokens; ++t) memset(y + t * width + from, 0, (to - from) * sizeof(float));
  for (int64_t i = 0; i < count; i += tile) {
    by_tokens<Simd::tokens_of_sums>(call.in.tokens, [&](auto T, int t) {
      Tile<T> rows;
      fill<T>(call, active, i, count, t, rows);
      float* sums[T];
      for (int k = 0; k < T; ++k) sums[k] = y + smaller(t + k, call.in.tokens - 1) * width;
      if (rows.count) add_halves<Simd, format, T>(rows, sums, from, to);
    });
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
    float sums[max_tokens + 1][units * size];  // one more, for a group that is short of a token
    memset(sums, 0, (call.in.tokens + 1) * sizeof sums[0]);
    for (int64_t i = 0; i < count; i += tile) {
      by_tokens<Simd::tokens_of_sums>(call.in.tokens, [&](auto T, int t) {
        Tile<T> rows;
        fill<T>(call, active, i, count, t, rows);
        if (!rows.count) return;
        for (int r = 0; r < rows.count; ++r)
          __builtin_prefetch(rows.next[r] + quant_bytes(format, width) + 2 * at[0].first_block);
        for (int u = 0; u < some; ++u)
          add_unit<Simd, format, T>(rows, at[u], width, sums[t] + u * size, units * size);
      });
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
