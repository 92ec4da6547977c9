// The operators' inner loops, written once as templates over a SIMD type and the weight format. Each kernels_*.cpp
// defines its `Simd`, includes this file and is compiled with its own flags: so every name here has internal linkage.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels.hpp"
#include "vectors.hpp"

namespace {

using hybrid::Counts;
using hybrid::FfnCall;
using hybrid::LinearCall;
using hybrid::max_chunk_rows;
using hybrid::max_tokens;

constexpr int64_t columns = 512;  // columns of a tile that all tokens use while they are in the nearest cache

float activate(hybrid::Activation activation, float v) {
  if (activation == hybrid::relu) return v <= 0 ? 0 : v;  // a NaN stays one
  return v / (1 + expf(-v));
}

// One chunk of a sparse feed-forward call: the rows that some token still needs, and a value for each pair.
template <class Simd, hybrid::WeightFormat format>
class Chunk {
 public:
  Chunk(const FfnCall& call, float* partial) : call_(call), partial_(partial) {}

  uint32_t run(int64_t first, int64_t last, Counts* counts) {
    collect(first, last);
    counts->gated += pairs(0, size_);
    project(0, false);
    activate_and_compact();
    counts->finished += pairs(0, size_);
    if (call_.gated) project(1, true);
    for (int i = 0; i < size_; i += tile) add_tile(i, static_cast<int>(smaller(tile, size_ - i)));
    return written_;
  }

 private:
  void collect(int64_t first, int64_t last) {
    const uint32_t everyone = (1u << call_.tokens) - 1;
    if (!call_.named) {
      for (int64_t r = first; r < last; ++r) push(r, everyone);
      return;
    }
    uint16_t sets[max_chunk_rows] = {};
    for (int t = 0; t < call_.tokens; ++t) {
      const uint8_t* named = call_.named + t * call_.named_stride;
      for (int64_t r = first; r < last; ++r) sets[r - first] |= static_cast<uint16_t>((named[r] != 0) << t);
    }
    for (int64_t r = first; r < last; ++r)
      if (sets[r - first]) push(r, sets[r - first]);
  }

  void push(int64_t row, uint32_t tokens) {
    rows_[size_] = row;
    sets_[size_++] = static_cast<uint16_t>(tokens);
  }

  const Element* vector(int i, int part) const {
    return reinterpret_cast<const Element*>(call_.rows + rows_[i] * call_.stride_bytes) + part * call_.hidden;
  }

  const float* token(int t) const { return call_.x + t * call_.hidden; }

  int pairs(int first, int last) const {
    int count = 0;
    for (int i = first; i < last; ++i) count += __builtin_popcount(sets_[i]);
    return count;
  }

  // Whether computing every pair of a block is cheaper than picking the needed ones.
  bool crowded(int first, int last) const { return 2 * pairs(first, last) > (last - first) * call_.tokens; }

  void put(int i, int t, float dot, bool multiply) {
    if (sets_[i] >> t & 1) values_[i][t] = multiply ? values_[i][t] * dot : dot;
  }

  // values[i][t] = (or *=) part_i . x_t for every pair.
  void project(int part, bool multiply) {
    for (int i = 0; i < size_; i += group) {
      const int end = static_cast<int>(smaller(i + group, size_));
      const Element *w[group], *next[group];
      for (int r = 0; r < group; ++r) {  // a short group repeats its last row: no more bytes, one loop
        w[r] = vector(static_cast<int>(smaller(i + r, size_ - 1)), part);
        next[r] = vector(static_cast<int>(smaller(i + group + r, size_ - 1)), part);
      }
      if (call_.tokens == 1) {
        project_block<1>(i, end, w, next, 0, multiply);
      } else if (crowded(i, end)) {
        for (int t = 0; t < call_.tokens; t += Simd::token_block)
          project_block<Simd::token_block>(i, end, w, t ? w : next, t, multiply);
      } else {
        for (int k = i; k < end; ++k) project_scattered(k, w[k - i], next[k - i], multiply);
      }
    }
  }

  template <int T>
  void project_block(int i, int end, const Element* const (&w)[group], const Element* const (&next)[group], int t,
                     bool multiply) {
    const float* x[T];
    float dots[group][T];
    for (int k = 0; k < T; ++k) x[k] = token(static_cast<int>(smaller(t + k, call_.tokens - 1)));
    dot_block<Simd, format, group, T>(w, x, call_.hidden, next, dots);
    for (int r = i; r < end; ++r)
      for (int k = 0; k < T && t + k < call_.tokens; ++k) put(r, t + k, dots[r - i][k], multiply);
  }

  void project_scattered(int i, const Element* row, const Element* next_row, bool multiply) {
    int tokens[max_tokens + group], count = 0;
    for (int t = 0; t < call_.tokens; ++t)
      if (sets_[i] >> t & 1) tokens[count++] = t;
    for (int k = 0; k < group; ++k) tokens[count + k] = tokens[count - 1];
    for (int k = 0; k < count; k += group) {
      const Element* const w[1] = {row};
      const Element* const next[1] = {k ? row : next_row};
      const float* const x[group] = {token(tokens[k]), token(tokens[k + 1]), token(tokens[k + 2]),
                                     token(tokens[k + 3])};
      float dots[1][group];
      dot_block<Simd, format, 1, group>(w, x, call_.hidden, next, dots);
      for (int m = 0; m < group && k + m < count; ++m) put(i, tokens[k + m], dots[0][m], multiply);
    }
  }

  // Applies the activation and keeps the pairs that go on, in order. The value of every other pair becomes zero.
  void activate_and_compact() {
    int kept = 0;
    for (int i = 0; i < size_; ++i) {
      const float bias = call_.bias ? call_.bias[rows_[i]] : 0;
      uint32_t set = 0;
      for (int t = 0; t < call_.tokens; ++t) {
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

  // partial[t] += sum of value * down over `count` rows.
  void add_tile(int i, int count) {
    const Element *w[max_tokens][tile], *next[tile];
    float h[max_tokens][tile];
    int counts[max_tokens];
    const int part = call_.gated ? 2 : 1;
    for (int r = 0; r < tile; ++r) next[r] = vector(static_cast<int>(smaller(i + tile + r, size_ - 1)), part);
    const bool blocks = call_.tokens > 1 && crowded(i, i + count);
    for (int t = 0; t < call_.tokens; ++t) {
      int& n = counts[t] = 0;
      for (int r = i; r < i + count; ++r) {
        if (!blocks && !(sets_[r] >> t & 1)) continue;
        w[t][n] = vector(r, part);
        h[t][n++] = values_[r][t];
      }
      if (n) open(t);
    }
    const int64_t step = call_.tokens > 1 ? columns : call_.hidden;
    for (int64_t j = 0; j < call_.hidden; j += step) {
      const int64_t end = smaller(j + step, call_.hidden);
      int t = 0;
      if (blocks) {
        constexpr int T = Simd::token_block;
        for (; t + T <= call_.tokens; t += T) {
          float* y[T];
          for (int k = 0; k < T; ++k) y[k] = partial_ + (t + k) * call_.hidden;
          add_rows<Simd, format, 2, T>(w[t], count, h + t, y, j, end, call_.hidden, next);
        }
      }
      for (; t < call_.tokens; ++t) {
        float* const y[1] = {partial_ + t * call_.hidden};
        if (counts[t]) add_rows<Simd, format, 4, 1>(w[t], counts[t], h + t, y, j, end, call_.hidden, next);
      }
    }
  }

  void open(int t) {
    if (written_ >> t & 1) return;
    memset(partial_ + t * call_.hidden, 0, call_.hidden * sizeof(float));
    written_ |= 1u << t;
  }

  const FfnCall& call_;
  float* partial_;  // [tokens, hidden]
  uint32_t written_ = 0;
  int size_ = 0;
  int64_t rows_[max_chunk_rows];
  uint16_t sets_[max_chunk_rows];  // the tokens that need the row
  float values_[max_chunk_rows][max_tokens];
};

template <class Simd, hybrid::WeightFormat format>
uint32_t ffn_chunk(const FfnCall& call, int64_t first, int64_t last, float* partial, Counts* counts) {
  return Chunk<Simd, format>(call, partial).run(first, last, counts);
}

template <class Simd, hybrid::WeightFormat format, int T>
void linear_group(const LinearCall& call, int64_t o, int64_t last, int t) {
  const Element *w[group], *next[group];
  const float* x[T];
  float dots[group][T];
  for (int r = 0; r < group; ++r) {
    const int64_t here = smaller(o + r, last - 1), there = smaller(o + group + r, last - 1);
    w[r] = reinterpret_cast<const Element*>(call.weight + here * call.stride_bytes);
    next[r] = reinterpret_cast<const Element*>(call.weight + (t ? here : there) * call.stride_bytes);
  }
  for (int k = 0; k < T; ++k) x[k] = call.x + smaller(t + k, call.tokens - 1) * call.in_features;
  dot_block<Simd, format, group, T>(w, x, call.in_features, next, dots);
  for (int k = 0; k < T && t + k < call.tokens; ++k)
    for (int r = 0; r < group && o + r < last; ++r)
      call.y[(t + k) * call.out_features + o + r] = dots[r][k] + (call.bias ? call.bias[o + r] : 0);
}

template <class Simd, hybrid::WeightFormat format>
void linear_rows(const LinearCall& call, int64_t first, int64_t last) {
  for (int64_t o = first; o < last; o += group) {
    if (call.tokens == 1) {
      linear_group<Simd, format, 1>(call, o, last, 0);
    } else {
      for (int t = 0; t < call.tokens; t += Simd::token_block)
        linear_group<Simd, format, Simd::token_block>(call, o, last, t);
    }
  }
}

template <class Simd>
constexpr hybrid::Kernels table(const char* name) {
  return {name,
          {ffn_chunk<Simd, hybrid::bf16>, ffn_chunk<Simd, hybrid::f16>},
          {linear_rows<Simd, hybrid::bf16>, linear_rows<Simd, hybrid::f16>}};
}

}  // namespace
