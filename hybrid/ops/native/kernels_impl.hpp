// The table of one instruction set. Each kernels_*.cpp includes its `Simd` and this file and is compiled with its own
// flags: so every name in the *_impl.hpp and simd_*.hpp has internal linkage.
#pragma once

#include "attention_impl.hpp"
#include "ffn_impl.hpp"
#include "kernels.hpp"
#include "state_impl.hpp"

namespace {

using hybrid::LinearCall;

template <class Simd, Format format, int T>
void linear_group(const LinearCall& call, int64_t o, int64_t last, int t) {
  constexpr int R = rows_together<Simd, format, T>();
  Bytes w[R], next[R];
  int tokens[T];
  float dots[R][T];
  for (int r = 0; r < R; ++r) {
    const int64_t here = smaller(o + r, last - 1);
    const int64_t there = smaller(here + rows_ahead(call.stride_bytes, R), last - 1);
    w[r] = call.weight + here * call.stride_bytes;
    next[r] = call.weight + (t ? here : there) * call.stride_bytes;
  }
  for (int k = 0; k < T; ++k) tokens[k] = static_cast<int>(smaller(t + k, call.in.tokens - 1));
  dot<Simd, format, R, T>(w, call.in, tokens, next, dots);
  for (int k = 0; k < T && t + k < call.in.tokens; ++k)
    for (int r = 0; r < R && o + r < last; ++r)
      call.y[(t + k) * call.out_features + o + r] = dots[r][k] + (call.bias ? call.bias[o + r] : 0);
}

template <class Simd, Format format>
void linear_rows(const LinearCall& call, int64_t first, int64_t last) {
  if (call.in.tokens == 1) {
    for (int64_t o = first; o < last; ++o) linear_group<Simd, format, 1>(call, o, last, 0);
    return;
  }
  constexpr int T = Simd::token_block;
  for (int64_t o = first; o < last; o += rows_together<Simd, format, T>())
    for (int t = 0; t < call.in.tokens; t += T) linear_group<Simd, format, T>(call, o, last, t);
}

template <class Simd>
constexpr hybrid::Kernels table(const char* name) {
  using namespace hybrid;
  return {name,
          round_to_blocks<Simd>,
          {linear_rows<Simd, bf16>, linear_rows<Simd, f16>, linear_rows<Simd, q8_0>, linear_rows<Simd, q4_0>},
          {ffn_rows<Simd, bf16>, ffn_rows<Simd, f16>, ffn_rows<Simd, q8_0>, ffn_rows<Simd, q4_0>},
          {ffn_columns<Simd, bf16>, ffn_columns<Simd, f16>, ffn_columns<Simd, q8_0>, ffn_columns<Simd, q4_0>},
          {widen<Simd, bf16>, widen<Simd, f16>, widen<Simd, q8_0>, widen<Simd, q4_0>, widen<Simd, f32>},
          {attend<Simd, bf16>, attend<Simd, f16>, nullptr, nullptr, attend<Simd, f32>},
          {narrow<Simd, bf16>, narrow<Simd, f16>, nullptr, nullptr, narrow<Simd, f32>},
          rms_norm<Simd>,
          layer_norm<Simd>,
          rotate<Simd>,
          add<Simd>,
          greatest<Simd>};
}

}  // namespace
