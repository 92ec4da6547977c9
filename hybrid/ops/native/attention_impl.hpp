// Attention over pages, and what else a layer does to a state: norms, rotary positions, rounding to blocks.
#pragma once

#include <math.h>
#include <string.h>

#include "dot_impl.hpp"

namespace {

using hybrid::AttentionCall;
using hybrid::max_span;
using hybrid::page_tokens;


// e^v to about 2 units in the last place, for v <= 0: 2^n times a polynomial (Cephes, expf). Below -87 it is 0.
template <class Simd>
inline typename Simd::V exponential(typename Simd::V v) {
  using V = typename Simd::V;
  v = Simd::max(Simd::broadcast(-87.0f), v);  // in this order a NaN stays one
  const V n = Simd::round(Simd::mul(v, Simd::broadcast(1.44269504088896341f)));
  V r = Simd::fma(n, Simd::broadcast(-0.693359375f), v);
  r = Simd::fma(n, Simd::broadcast(2.12194440e-4f), r);
  V p = Simd::broadcast(1.9875691500e-4f);
  constexpr float others[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  for (float c : others) p = Simd::fma(p, r, Simd::broadcast(c));
  p = Simd::fma(p, Simd::mul(r, r), Simd::add(r, Simd::broadcast(1.0f)));
  return Simd::times_power_of_two(p, n);
}

// Weights of n scores, in place: e^(score - greatest). Returns their sum; the greatest score goes to `greatest`.
template <class Simd>
inline float soften(float* scores, int64_t n, float* greatest) {
  float most = scores[0];
  for (int64_t i = 1; i < n; ++i) most = scores[i] > most ? scores[i] : most;
  typename Simd::V sum = Simd::zero();
  const typename Simd::V less = Simd::broadcast(-most);
  for (int64_t i = 0; i < n; i += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, n - i);
    Simd::store(scores + i, exponential<Simd>(Simd::add(Simd::load(scores + i, rest), less)), rest);
    sum = Simd::add(sum, Simd::load(scores + i, rest));
  }
  *greatest = most;
  return Simd::sum(sum);
}

// A key or value vector of one kv head.
template <Format format>
inline Bytes page_row(const void* pages, const AttentionCall& call, int token, int64_t kv_head, int64_t key) {
  constexpr int64_t element = format == hybrid::f32 ? 4 : 2;
  const int64_t page = call.blocks[token][key / page_tokens] * call.kv_heads + kv_head;
  return static_cast<Bytes>(pages) + (page * page_tokens + key % page_tokens) * call.head_dim * element;
}

// scores[h][key - first] = q_h . key, scaled, for H query heads.
template <class Simd, Format format, int H>
inline void score(const AttentionCall& call, const float* q, int token, int64_t kv_head, int64_t first, int64_t last,
                  float (*scores)[max_span]) {
  constexpr int64_t element = format == hybrid::f32 ? 4 : 2;
  const float scale = 1.0f / sqrtf(static_cast<float>(call.head_dim));
  for (int64_t key = first; key < last; ++key) {
    const Bytes k = page_row<format>(call.keys, call, token, kv_head, key);
    typename Simd::V sums[H];
    for (int h = 0; h < H; ++h) sums[h] = Simd::zero();
    int64_t j = 0;
    for (; j + Simd::lanes <= call.head_dim; j += Simd::lanes) {
      const typename Simd::V wide = Simd::template widen<format>(k + j * element);
      for (int h = 0; h < H; ++h) sums[h] = Simd::fma(wide, Simd::load(q + h * call.head_dim + j), sums[h]);
    }
    if (const int64_t rest = call.head_dim - j) {
      const typename Simd::V wide = Simd::template widen<format>(k + j * element, rest);
      for (int h = 0; h < H; ++h) sums[h] = Simd::fma(wide, Simd::load(q + h * call.head_dim + j, rest), sums[h]);
    }
    for (int h = 0; h < H; ++h) scores[h][key - first] = Simd::sum(sums[h]) * scale;
  }
}

// out[h] = sum over keys of weight * value vector, for H query heads, `columns` vectors of it at a time.
template <class Simd, Format format, int H>
inline void mix(const AttentionCall& call, int token, int64_t kv_head, int64_t first, int64_t last,
                const float (*weights)[max_span], float* out, int64_t out_stride) {
  constexpr int64_t element = format == hybrid::f32 ? 4 : 2;
  constexpr int columns = H > 1 ? 2 : 4;
  for (int64_t j = 0; j < call.head_dim; j += columns * Simd::lanes) {
    typename Simd::V sums[H][columns];
    int64_t rest[columns];
    for (int c = 0; c < columns; ++c) {
      const int64_t left = call.head_dim - j - c * Simd::lanes;
      rest[c] = left < 0 ? 0 : smaller(left, Simd::lanes);
      for (int h = 0; h < H; ++h) sums[h][c] = Simd::zero();
    }
    const bool whole = rest[columns - 1] == Simd::lanes;
    for (int64_t key = first; key < last; ++key) {
      const Bytes v = page_row<format>(call.values, call, token, kv_head, key) + j * element;
      for (int c = 0; c < columns; ++c) {
        const Bytes from = v + c * Simd::lanes * element;
        const typename Simd::V wide =
            whole ? Simd::template widen<format>(from) : Simd::template widen<format>(from, rest[c]);
        for (int h = 0; h < H; ++h)
          sums[h][c] = Simd::fma(wide, Simd::broadcast(weights[h][key - first]), sums[h][c]);
      }
    }
    for (int h = 0; h < H; ++h)
      for (int c = 0; c < columns; ++c) {
        float* const to = out + h * out_stride + j + c * Simd::lanes;
        if (rest[c] == Simd::lanes) Simd::store(to, sums[h][c]);
        else if (rest[c]) Simd::store(to, sums[h][c], rest[c]);
      }
  }
}

template <class Simd, Format format, int H>
inline void attend_heads(const AttentionCall& call, const float* q, int token, int64_t kv_head, int64_t first,
                         int64_t last, float* partial) {
  float scores[H][max_span];
  const int64_t stride = call.head_dim + 2;
  score<Simd, format, H>(call, q, token, kv_head, first, last, scores);
  for (int h = 0; h < H; ++h) {
    float* const tail = partial + h * stride + call.head_dim;
    tail[1] = soften<Simd>(scores[h], last - first, tail);
  }
  mix<Simd, format, H>(call, token, kv_head, first, last, scores, partial, stride);
}

template <class Simd, Format format>
void attend(const AttentionCall& call, int token, int64_t kv_head, int64_t first, int64_t last, float* partial) {
  const int64_t shared = call.heads / call.kv_heads;
  const float* q = call.q + (token * call.heads + kv_head * shared) * call.head_dim;
  for (int64_t h = 0; h < shared;) {
    const float* const from = q + h * call.head_dim;
    float* const to = partial + h * (call.head_dim + 2);
    if (shared - h >= 4) {
      attend_heads<Simd, format, 4>(call, from, token, kv_head, first, last, to);
      h += 4;
    } else {
      attend_heads<Simd, format, 1>(call, from, token, kv_head, first, last, to);
      h += 1;
    }
  }
}

}  // namespace
