// The products of rows in a sparse feed-forward network, as templates over a SIMD type and the weight format.
#pragma once

#include <math.h>
#include <string.h>

#include "dot_impl.hpp"

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
      memcpy(active.values + i * call_.in.tokens, values_[i], call_.in.tokens * sizeof(float));
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

  void put(int i, int t, float dot, bool multiply) { values_[i][t] = multiply ? values_[i][t] * dot : dot; }

  // values[i][t] = (or *=) part_i . x_t for every pair; other values become what nobody reads.
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
    for (uint32_t left = sets_[i]; left; left &= left - 1) tokens[count++] = __builtin_ctz(left);
    for (int k = 0; k < most; ++k) tokens[count + k] = tokens[count - 1];
    const int turns = static_cast<int>(divide_up(count, most));
    const Bytes w[1] = {vector(i, part)}, next[1] = {upcoming(i + rows_ahead(call_.vector_bytes, 2), part)};
    by_tokens<most>(count, [&](auto T, int k) {
      project_some<T>(w, tokens + k, Ahead(w, next, call_.vector_bytes, k / most, turns), i, smaller(T, count - k), multiply);
    });
  }

  // Some tokens of a row. In a function of its own, whose sums compilers keep in registers.
  template <int T>
  [[gnu::noinline]] void project_some(const Bytes (&w)[1], const int* tokens, const Ahead& later, int i, int64_t count,
                                      bool multiply) {
    int some[T];
    float dots[1][T];
    for (int k = 0; k < T; ++k) some[k] = tokens[k];
    dot<Simd, format, 1, T>(w, call_.in, some, later, dots);
    for (int k = 0; k < count; ++k) put(i, some[k], dots[0][k], multiply);
  }

  // Applies f to the values and keeps the pairs that go on, in order. The value of every other pair becomes zero.
  template <class F>
  void compact(const F& f) {
    int kept = 0;
    for (int i = 0; i < size_; ++i) {
      float values[max_tokens] = {};
      uint32_t set = 0;
      for (uint32_t left = sets_[i]; left; left &= left - 1) {
        const int t = __builtin_ctz(left);
        values[t] = f(values_[i][t], rows_[i]);
        if (!(call_.skip_inactive && values[t] == 0)) set |= 1u << t;
      }
      memcpy(values_[kept], values, sizeof values);
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

}  // namespace
