// Dot products and weighted sums of rows, as templates over a SIMD type and the weight format.
//
// Every dot product and every output element is one chain of fused additions whose order depends on the sizes alone. So
// a token's result has the same bits alone and beside other tokens, and whichever thread computes it.
#pragma once

#include <stdint.h>

#include "kernels.hpp"

namespace {

using Element = uint16_t;

constexpr int group = 4;         // rows whose dot products are formed together
constexpr int tile = 8;          // rows added to the output in one pass over it
constexpr int line = 32;         // elements of a cache line
constexpr int64_t ahead = 4096;  // elements asked for before they are read, of all rows that are read together

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Asks for `count` elements of w, `reach` elements after j: past its end, those of the row that is next. Mapped files
// lie in small pages, at whose ends the processor's own prefetching stops: without this, reading is far slower.
inline void prefetch(const Element* w, const Element* next, int64_t j, int64_t n, int64_t reach, int count) {
  const Element* from = j + reach < n ? w + j + reach : next + (j + reach - n);
  for (int k = 0; k < count; k += line) __builtin_prefetch(from + k);
}

// out[r][t] = w[r] . x[t] over n elements; the rows `next` follow.
template <class Simd, hybrid::WeightFormat format, int R, int T>
inline void dot_block(const Element* const (&w)[R], const float* const (&x)[T], int64_t n,
                      const Element* const (&next)[R], float (&out)[R][T]) {
  typename Simd::V sums[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[r][t] = Simd::zero();
  const int64_t reach = smaller(ahead / R, n);
  int64_t j = 0;
  for (; j + line <= n; j += line) {
    for (int r = 0; r < R; ++r) prefetch(w[r], next[r], j, n, reach, line);
    for (int64_t k = j; k < j + line; k += Simd::lanes) {
      typename Simd::V wide[R];
      for (int r = 0; r < R; ++r) wide[r] = Simd::template widen<format>(w[r] + k);
      for (int t = 0; t < T; ++t) {
        const typename Simd::V xs = Simd::load(x[t] + k);
        for (int r = 0; r < R; ++r) sums[r][t] = Simd::fma(wide[r], xs, sums[r][t]);
      }
    }
  }
  for (; j < n; j += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, n - j);
    for (int t = 0; t < T; ++t) {
      const typename Simd::V xs = Simd::load(x[t] + j, rest);
      for (int r = 0; r < R; ++r)
        sums[r][t] = Simd::fma(Simd::template widen<format>(w[r] + j, rest), xs, sums[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[r][t] = Simd::sum(sums[r][t]);
}

// y[t][j] += sum over `rows` rows of h[t][r] * w[r][j], for j from first to last of n, a row after the other.
template <class Simd, hybrid::WeightFormat format, int U, int T>
inline void add_rows(const Element* const* w, int rows, const float (*h)[tile], float* const (&y)[T], int64_t first,
                     int64_t last, int64_t n, const Element* const* next) {
  typename Simd::V sums[T][U];
  const int64_t reach = smaller(ahead / tile, n);
  int64_t j = first;
  for (; j + U * Simd::lanes <= last; j += U * Simd::lanes) {
    for (int t = 0; t < T; ++t)
      for (int u = 0; u < U; ++u) sums[t][u] = Simd::load(y[t] + j + u * Simd::lanes);
    for (int r = 0; r < rows; ++r) {
      const Element* row = w[r] + j;
      prefetch(w[r], next[r], j, n, reach, U * Simd::lanes);
      for (int u = 0; u < U; ++u) {
        const typename Simd::V wide = Simd::template widen<format>(row + u * Simd::lanes);
        for (int t = 0; t < T; ++t) sums[t][u] = Simd::fma(wide, Simd::broadcast(h[t][r]), sums[t][u]);
      }
    }
    for (int t = 0; t < T; ++t)
      for (int u = 0; u < U; ++u) Simd::store(y[t] + j + u * Simd::lanes, sums[t][u]);
  }
  for (; j < last; j += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, last - j);
    for (int t = 0; t < T; ++t) {
      typename Simd::V sum = Simd::load(y[t] + j, rest);
      for (int r = 0; r < rows; ++r)
        sum = Simd::fma(Simd::template widen<format>(w[r] + j, rest), Simd::broadcast(h[t][r]), sum);
      Simd::store(y[t] + j, sum, rest);
    }
  }
}

}  // namespace
