// The table of one instruction set. Each kernels_*.cpp includes its `Simd` and this file and is compiled with its own
// flags: so every name in the *_impl.hpp and simd_*.hpp has internal linkage.
#pragma once

#include "attention_impl.hpp"
#include "ffn_impl.hpp"
#include "kernels.hpp"
#include "state_impl.hpp"

namespace {

using hybrid::LinearCall;

constexpr int short_together = 8;  // rows of which two fill a vector

// R outputs from o on (at most to last) of T tokens from t on.
template <class Simd, Format format, int R, int T, bool pairs = false>
void linear_group(const LinearCall& call, int64_t o, int64_t last, int t, int turn, int turns) {
  Bytes w[R], next[R];
  int tokens[T];
  for (int r = 0; r < R; ++r) {
    const int64_t here = smaller(o + r, last - 1);
    w[r] = call.weight + here * call.stride_bytes;
    next[r] = call.weight + smaller(here + rows_ahead(call.stride_bytes, R), last - 1) * call.stride_bytes;
  }
  for (int k = 0; k < T; ++k) tokens[k] = static_cast<int>(smaller(t + k, call.in.tokens - 1));
  const Ahead later(w, next, hybrid::vector_bytes(format, call.in.width), turn, turns);
  const int count = static_cast<int>(smaller(R, last - o));
  float* y = call.y + t * call.out_features + o;
  if constexpr (pairs) {
    float dots[T][R];
    dot_pairs<Simd, format, T>(w, call.in, tokens, later, dots);
    for (int k = 0; k < T && t + k < call.in.tokens; ++k, y += call.out_features)
      for (int r = 0; r < count; ++r) y[r] = dots[k][r] + (call.bias ? call.bias[o + r] : 0);
  } else {
    float dots[R][T];
    dot<Simd, format, R, T>(w, call.in, tokens, later, dots);
    for (int k = 0; k < T && t + k < call.in.tokens; ++k, y += call.out_features)
      for (int r = 0; r < count; ++r) y[r] = dots[r][k] + (call.bias ? call.bias[o + r] : 0);
  }
}

// One row at a time where one token asks, or few and rows are long: rows read one after the other are a stream that the
// processor's own prefetching follows. A 4-bit row is then read twice as fast for one token as four side by side.
template <class Simd, Format format>
void linear_rows(const LinearCall& call, int64_t first, int64_t last) {
  constexpr int R = rows_together<Simd, format>(), most = tokens_together<Simd, format>();
  if (call.in.tokens == 1) {
    for (int64_t o = first; o < last; ++o) linear_group<Simd, format, 1, 1>(call, o, last, 0, 0, 1);
    return;
  }
  const int turns = static_cast<int>(divide_up(call.in.tokens, most));
  if constexpr (Simd::pairs_rows && in_blocks(format)) {
    if (two_fill_a_vector<Simd, format>(call.in.width)) {
      constexpr int S = short_together;
      for (int64_t o = first; o < last; o += S)
        by_tokens<most>(call.in.tokens,
                        [&](auto T, int t) { linear_group<Simd, format, S, T, true>(call, o, last, t, t / most, turns); });
      return;
    }
  }
  if constexpr (format == hybrid::q8_0 && Simd::lanes == hybrid::group_blocks) {
    if (turns == 1) {  // still bound by memory
      for (int64_t o = first; o < last; ++o)
        by_tokens<most>(call.in.tokens, [&](auto T, int t) { linear_group<Simd, format, 1, T>(call, o, last, t, 0, 1); });
      return;
    }
  }
  for (int64_t o = first; o < last; o += R)
    by_tokens<most>(call.in.tokens,
                    [&](auto T, int t) { linear_group<Simd, format, R, T>(call, o, last, t, t / most, turns); });
}

template <class Simd>
constexpr hybrid::Kernels table(const char* name) {
  using namespace hybrid;
  return {name,
          round_to_blocks<Simd>,
          {linear_rows<Simd, bf16>, linear_rows<Simd, f16>, linear_rows<Simd, q8_0>, linear_rows<Simd, q4_0>,
           linear_rows<Simd, b1>},
          {ffn_rows<Simd, bf16>, ffn_rows<Simd, f16>, ffn_rows<Simd, q8_0>, ffn_rows<Simd, q4_0>},
          {ffn_columns<Simd, bf16>, ffn_columns<Simd, f16>, ffn_columns<Simd, q8_0>, ffn_columns<Simd, q4_0>},
          {widen<Simd, bf16>, widen<Simd, f16>, widen<Simd, q8_0>, widen<Simd, q4_0>, nullptr, widen<Simd, f32>},
          {attend<Simd, bf16>, attend<Simd, f16>, nullptr, nullptr, nullptr, attend<Simd, f32>},
          {narrow<Simd, bf16>, narrow<Simd, f16>, nullptr, nullptr, nullptr, narrow<Simd, f32>},
          rms_norm<Simd>,
          layer_norm<Simd>,
          rotate<Simd>,
          add<Simd>,
          greatest<Simd>};
}

}  // namespace
