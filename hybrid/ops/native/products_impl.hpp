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

constexpr int window = 64;  // rows that stay at hand while token after token takes its own of them

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

// Vectors that are read later and asked for piece by piece, so that memory and arithmetic take their time together.
class Requests {
 public:
  explicit Requests(int64_t size) : size_(size) {}
  void clear() { count_ = 0, row_ = 0, at_ = 0; }
  void add(Bytes vector) { vectors_[count_++] = vector; }
  int64_t lines() const { return count_ * divide_up(size_, line); }
  void ask(int64_t lines) {
    while (lines > 0 && row_ < count_) {
      const int64_t end = smaller(at_ + lines * line, size_);
      lines -= divide_up(end - at_, line);
      for (; at_ < end; at_ += line) __builtin_prefetch(vectors_[row_] + at_);
      if (at_ >= size_) ++row_, at_ = 0;
    }
  }

 private:
  Bytes vectors_[window];
  int count_ = 0, row_ = 0;
  int64_t size_, at_ = 0;
};

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
    int few[max_chunk_rows], count = 0;
    for (int i = 0; i < size_; i += R) {
      const int end = static_cast<int>(smaller(i + R, size_));
      if (2 * pairs(i, end) > (end - i) * call_.in.tokens) {  // all pairs cost less than picking the needed
        by_tokens<most>(call_.in.tokens,
                        [&](auto T, int t) { project_rows<R, T>(i, part, t, t / most, turns, multiply); });
      } else {
        for (int k = i; k < end; ++k) few[count++] = k;
      }
    }
    Requests later(call_.vector_bytes);
    for (int k = 0; k < smaller(count, window); ++k) later.add(vector(few[k], part));
    later.ask(later.lines());
    for (int first = 0; first < count; first += window) {
      const int size = static_cast<int>(smaller(window, count - first));
      after(few + first + size, count - first - size, part, later);
      project_window(few + first, size, part, later, multiply);
    }
  }

  // What is read after a window: the rest of the part, then the rows' next part or, after the last, the rows to come.
  void after(const int* rest, int count, int part, Requests& later) const {
    later.clear();
    for (int k = 0; k < smaller(count, window); ++k) later.add(vector(rest[k], part));
    if (count) return;
    if (part == 0 && call_.gated) {
      for (int i = 0; i < smaller(size_, window); ++i) later.add(vector(i, 1));
    } else {
      for (int i = 0; i < smaller(later_, window); ++i) later.add(call_.rows + later_rows_[i] * call_.stride_bytes);
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

  // Some rows that few tokens need: token after token takes its own, four at a time.
  void project_window(const int* rows, int size, int part, Requests& later, bool multiply) {
    constexpr int R = named_together;
    int wanted = 0;
    for (int k = 0; k < size; ++k) wanted += __builtin_popcount(sets_[rows[k]]);
    const int64_t share = divide_up(later.lines() * R, greater(wanted, 1));
    for (int t = 0; t < call_.in.tokens; ++t) {
      int own[window + R], count = 0;
      for (int k = 0; k < size; ++k) {  // without a branch, which nobody could foresee
        own[count] = rows[k];
        count += sets_[rows[k]] >> t & 1;
      }
      for (int k = count; count && k < count + R; ++k) own[k] = own[count - 1];
      for (int k = 0; k < count; k += R) {
        later.ask(share);
        project_own(own + k, static_cast<int>(smaller(R, count - k)), part, t, multiply);
      }
    }
  }

  // Some of four rows for one token. In a function of its own, whose sums compilers keep in registers.
  [[gnu::noinline]] void project_own(const int* rows, int count, int part, int t, bool multiply) {
    Bytes w[named_together];
    const int token[1] = {t};
    float dots[named_together][1];
    for (int r = 0; r < named_together; ++r) w[r] = vector(rows[r], part);
    dot<Simd, format, named_together, 1>(w, call_.in, token, NotAhead(), dots);
    for (int r = 0; r < count; ++r) put(rows[r], t, dots[r][0], multiply);
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
