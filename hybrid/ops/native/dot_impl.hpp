// Dot products of rows and inputs, as templates over a SIMD type and the weight format.
//
// Every dot product is one chain of fused additions for each lane, whose order depends on the sizes alone. So a token's
// result has the same bits alone and beside other tokens, and whichever thread computes it.
#pragma once

#include "kernels.hpp"

namespace {

using hybrid::element_bytes;
using hybrid::Format;
using hybrid::in_blocks;
using hybrid::Input;
using hybrid::words_per_block;

using Bytes = const unsigned char*;

constexpr int line = 64;          // bytes of a cache line
constexpr int64_t ahead = 8192;   // bytes asked for before they are read, of all rows that are read together
constexpr int chains = 2;         // sums that a dot product of 16-bit weights is kept in: additions take four cycles

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a < b ? b : a; }

// Rows whose dot products are formed together. One, where one token asks: rows read one after the other are a stream that
// the processor's own prefetching follows, and a 4-bit row is then read twice as fast as four side by side. With more
// tokens arithmetic counts, and rows share what is loaded of the inputs, as many as the registers hold sums for.
template <class Simd, Format format, int tokens>
constexpr int rows_together() {
  if (tokens == 1) return 1;
  return in_blocks(format) ? Simd::rows_of_blocks : Simd::rows_of_halves;
}

// Bytes of the quants of n weights; the scales follow them.
template <Format format>
inline int64_t quant_bytes(int64_t n) { return n / hybrid::block * 4 * words_per_block(format); }

// Asks for `count` bytes of w, `reach` bytes after `at`: past its end (`size`), those of the row that comes later. Mapped
// files lie in small pages, at whose ends the processor's own prefetching stops: without this, reading is far slower.
inline void prefetch(Bytes w, Bytes next, int64_t at, int64_t size, int64_t reach, int64_t count) {
  const Bytes from = at + reach < size ? w + at + reach : next + (at + reach - size);
  for (int64_t k = 0; k < count; k += line) __builtin_prefetch(from + k);
}

// How many rows further on the row lies that is asked for while a row of so many bytes is multiplied.
inline int64_t rows_ahead(int64_t size, int together) { return ((ahead - 1) / (together * size) + 1) * together; }

// out[r][t] = w[r] . x[t] for 16-bit weights.
template <class Simd, Format format, int R, int T>
inline void dot_halves(const Bytes (&w)[R], const Input& in, const int (&tokens)[T], const Bytes (&next)[R],
                       float (&out)[R][T]) {
  typename Simd::V sums[R][T][chains];
  const float* x[T];
  for (int t = 0; t < T; ++t) x[t] = in.x + tokens[t] * in.width;
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      for (int c = 0; c < chains; ++c) sums[r][t][c] = Simd::zero();
  constexpr int step = line / 2;
  const int64_t n = in.width, reach = smaller(ahead / R, 2 * n);
  int64_t j = 0;
  for (; j + step <= n; j += step) {
    for (int r = 0; r < R; ++r) prefetch(w[r], next[r], 2 * j, 2 * n, reach, line);
    for (int k = 0; k < step / Simd::lanes; ++k) {
      const int64_t at = j + k * Simd::lanes;
      typename Simd::V wide[R];
      for (int r = 0; r < R; ++r) wide[r] = Simd::template widen<format>(w[r] + 2 * at);
      for (int t = 0; t < T; ++t) {
        const typename Simd::V xs = Simd::load(x[t] + at);
        for (int r = 0; r < R; ++r) sums[r][t][k % chains] = Simd::fma(wide[r], xs, sums[r][t][k % chains]);
      }
    }
  }
  for (; j < n; j += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, n - j);
    for (int t = 0; t < T; ++t) {
      const typename Simd::V xs = Simd::load(x[t] + j, rest);
      for (int r = 0; r < R; ++r)
        sums[r][t][0] = Simd::fma(Simd::template widen<format>(w[r] + 2 * j, rest), xs, sums[r][t][0]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[r][t] = Simd::sum(Simd::add(sums[r][t][0], sums[r][t][1]));
}

// The blocks `first` to `first + n` (at most a vector's lanes, all of one group of `in_group` blocks): their words are
// multiplied and added up as integers, a lane for each block, then scaled. `known` is n where it is known when compiled:
// all lanes or half of them; else 0, and loads are masked, which can be several times slower.
template <class Simd, Format format, int R, int T, int known>
inline void dot_lanes(const Bytes (&w)[R], const Input& in, const int (&tokens)[T], int64_t first, int64_t n,
                      int64_t at, int64_t in_group, typename Simd::V (&sums)[R][T]) {
  const auto words = [n](const void* p) {
    if constexpr (known == Simd::lanes) return Simd::words(p);
    else if constexpr (known != 0) return Simd::half_words(p);
    else return Simd::words(p, n);
  };
  const auto floats = [n](const float* p) { return known == Simd::lanes ? Simd::load(p) : Simd::load(p, n); };
  constexpr int steps = words_per_block(format);
  constexpr int offset = format == hybrid::q4_0 ? 8 : Simd::signed_offset;
  const int64_t blocks = in.width / hybrid::block;
  typename Simd::I products[R][T];
  const int8_t* x[T];
  for (int t = 0; t < T; ++t) {
    x[t] = in.codes + tokens[t] * in.width + (first - at) * hybrid::block + 4 * at;
    const typename Simd::I start = Simd::times(words(in.sums + tokens[t] * blocks + first), -offset);
    for (int r = 0; r < R; ++r) products[r][t] = start;
  }
  const int64_t quants = (first - at) * 4 * steps + 4 * at;
  for (int s = 0; s < steps; ++s) {
    const int64_t step = s * in_group * 4;
    if constexpr (format == hybrid::q4_0) {
      typename Simd::I low[R], high[R];
      for (int r = 0; r < R; ++r) {
        const typename Simd::I v = words(w[r] + quants + step);
        low[r] = Simd::low(v), high[r] = Simd::high(v);
      }
      for (int t = 0; t < T; ++t) {
        const typename Simd::I xl = words(x[t] + step), xh = words(x[t] + step + 4 * in_group * 4);
        for (int r = 0; r < R; ++r)
          products[r][t] = Simd::dot_nibbles(Simd::dot_nibbles(products[r][t], low[r], xl), high[r], xh);
      }
    } else {
      typename Simd::I v[R];
      for (int r = 0; r < R; ++r) v[r] = words(w[r] + quants + step);
      for (int t = 0; t < T; ++t) {
        const typename Simd::I xs = words(x[t] + step);
        for (int r = 0; r < R; ++r) products[r][t] = Simd::dot_signed(products[r][t], v[r], xs);
      }
    }
  }
  typename Simd::V scales[R];
  for (int r = 0; r < R; ++r)
    scales[r] = Simd::halves(w[r] + quant_bytes<format>(in.width) + 2 * first, known ? known : n);
  for (int t = 0; t < T; ++t) {
    const typename Simd::V xs = floats(in.scales + tokens[t] * blocks + first);
    for (int r = 0; r < R; ++r)
      sums[r][t] = Simd::fma(Simd::to_float(products[r][t]), Simd::mul(scales[r], xs), sums[r][t]);
  }
}

// out[r][t] = w[r] . x[t] for block formats.
template <class Simd, Format format, int R, int T>
inline void dot_blocks(const Bytes (&w)[R], const Input& in, const int (&tokens)[T], const Bytes (&next)[R],
                       float (&out)[R][T]) {
  typename Simd::V sums[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[r][t] = Simd::zero();
  constexpr int block_bytes = 4 * words_per_block(format) + 2;
  const int64_t blocks = in.width / hybrid::block, size = blocks * block_bytes, reach = smaller(ahead / R, size);
  for (int64_t g = 0; g < blocks; g += hybrid::group_blocks) {
    const int64_t n = smaller(hybrid::group_blocks, blocks - g);
    for (int r = 0; r < R; ++r) prefetch(w[r], next[r], g * block_bytes, size, reach, n * block_bytes);
    int64_t l = 0;
    for (; l + Simd::lanes <= n; l += Simd::lanes)
      dot_lanes<Simd, format, R, T, Simd::lanes>(w, in, tokens, g + l, Simd::lanes, l, n, sums);
    constexpr int half = Simd::lanes / 2;
    if (n - l == half) dot_lanes<Simd, format, R, T, half>(w, in, tokens, g + l, half, l, n, sums);
    else if (l < n) dot_lanes<Simd, format, R, T, 0>(w, in, tokens, g + l, n - l, l, n, sums);
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[r][t] = Simd::sum(sums[r][t]);
}

// out[r][t] = w[r] . x[tokens[t]]; the vectors `next` come `rows_ahead` rows later.
template <class Simd, Format format, int R, int T>
inline void dot(const Bytes (&w)[R], const Input& in, const int (&tokens)[T], const Bytes (&next)[R],
                float (&out)[R][T]) {
  if constexpr (in_blocks(format)) dot_blocks<Simd, format, R, T>(w, in, tokens, next, out);
  else dot_halves<Simd, format, R, T>(w, in, tokens, next, out);
}

}  // namespace
