// Weighted sums of rows' vectors over a range of columns, as templates over a SIMD type and the weight format.
//
// A thread owns columns and adds all rows to them, in the order of the rows: no partial sums, and the same bits whoever
// owns the columns. Rows are taken in tiles, whose sums stay in registers while all rows of the tile are added.
#pragma once

#include <string.h>

#include "products_impl.hpp"

namespace {

using hybrid::unit_columns;

constexpr int window = 64;  // rows that stay at hand while token after token takes its own of them
constexpr int tile = 16;  // rows added in one pass over the sums of several tokens

template <int T>
constexpr int rows_at_most() { return T == 1 ? window : tile; }

// The vectors that some of T tokens need of a tile, and the factor of each for each token; `next` are asked for meanwhile,
// piece by piece, so that memory and arithmetic take their time together.
template <int T>
struct Tile {
  Bytes rows[rows_at_most<T>()];
  Bytes next[rows_at_most<T>()];
  float factors[rows_at_most<T>()][T];
  int count;
};

// y[k][first..last) += sum over the tile's rows of factor * w, for 16-bit weights and T tokens. A group that is short of one
// repeats its last token, with factors of zero: so sums are stored from the last token down, the true one after it.
template <class Simd, Format format, int T>
inline void add_halves(const Tile<T>& t, float* const (&y)[T], int64_t first, int64_t last) {
  constexpr int U = T == 1 ? 8 : 4;
  int64_t j = first;
  for (; j + U * Simd::lanes <= last; j += U * Simd::lanes) {
    typename Simd::V sums[T][U];
    for (int k = 0; k < T; ++k)
      for (int u = 0; u < U; ++u) sums[k][u] = Simd::load(y[k] + j + u * Simd::lanes);
    for (int r = 0; r < t.count; ++r) {
      typename Simd::V factors[T];
      for (int k = 0; k < T; ++k) factors[k] = Simd::broadcast(t.factors[r][k]);
      for (int k = 0; k < U * Simd::lanes * 2; k += line) __builtin_prefetch(t.next[r] + 2 * j + k);
      for (int u = 0; u < U; ++u) {
        const typename Simd::V wide = Simd::template widen<format>(t.rows[r] + 2 * (j + u * Simd::lanes));
        for (int k = 0; k < T; ++k) sums[k][u] = Simd::fma(wide, factors[k], sums[k][u]);
      }
    }
    for (int k = T - 1; k >= 0; --k)
      for (int u = 0; u < U; ++u) Simd::store(y[k] + j + u * Simd::lanes, sums[k][u]);
  }
  for (; j < last; j += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, last - j);
    for (int k = 0; k < T; ++k) {
      typename Simd::V sum = Simd::load(y[k] + j, rest);
      for (int r = 0; r < t.count; ++r)
        sum = Simd::fma(Simd::template widen<format>(t.rows[r] + 2 * j, rest), Simd::broadcast(t.factors[r][k]), sum);
      Simd::store(y[k] + j, sum, rest);
    }
  }
}

template <Format format>
constexpr int parts() { return format == hybrid::q4_0 ? 8 : 4; }  // weights in one 32-bit word

// The column, within its block, of weight k of word `step`.
template <Format format>
inline int64_t column(int step, int k) {
  return format == hybrid::q4_0 ? 4 * step + k / 2 + k % 2 * 16 : 4 * step + k;
}

template <class Simd, Format format, int k>
inline typename Simd::V weight(typename Simd::I words) {
  if constexpr (format == hybrid::q4_0) return Simd::template nibble<k>(words);
  else return Simd::template signed_byte<k>(words);
}

// sums[t][k] += factor_t * weight k of the words, for N of their parts from `first` on.
template <class Simd, Format format, int first, int N, int T, int k = 0>
inline void add_word(typename Simd::I words, const typename Simd::V (&factors)[T], typename Simd::V (&sums)[T][N]) {
  if constexpr (k < N) {
    const typename Simd::V wide = weight<Simd, format, first + k>(words);
    for (int t = 0; t < T; ++t) sums[t][k] = Simd::fma(wide, factors[t], sums[t][k]);
    add_word<Simd, format, first, N, T, k + 1>(words, factors, sums);
  }
}

// Where a SIMD type gives nibbles as they are stored, 8 too large, 8 times the factors' sum is taken off in the end.
template <class Simd, Format format>
constexpr int offset() { return format == hybrid::q4_0 ? Simd::nibble_offset : 0; }

// Parts of a word that registers hold the sums of, for so many tokens.
template <class Simd, Format format, int T>
constexpr int parts_together() { return T * parts<format>() > Simd::sums_held ? Simd::sums_held / T : parts<format>(); }

// Words of a block, one after the other, that registers hold the sums of for one token: they share its factors.
template <class Simd, Format format>
constexpr int words_together() { return Simd::sums_held > parts<format>() ? Simd::sums_held / parts<format>() : 1; }

// Sums of S words of each of n blocks for T tokens, kept [parts + 1][group_blocks] for each word, those of the next word
// one `next_word` further, those of the next token y_stride: lane l of part k belongs to block l, and the last part is the
// factors' sum.
template <class Simd, Format format, int T, int S, bool whole, int first = 0>
inline void add_lanes(const Tile<T>& t, int64_t quants, int64_t scales, int64_t n, int64_t in_group, float* y,
                      int64_t y_stride) {
  constexpr int K = parts<format>(), N = parts_together<Simd, format, T>();
  constexpr bool sum_factors = first == 0 && offset<Simd, format>() != 0;
  constexpr int64_t part = hybrid::group_blocks, next_word = (K + 1) * part;
  typename Simd::V sums[S][T][N], all[T];
  for (int k = 0; k < T; ++k) {
    for (int s = 0; s < S; ++s)
      for (int p = 0; p < N; ++p) sums[s][k][p] = Simd::load(y + k * y_stride + s * next_word + (first + p) * part);
    if constexpr (sum_factors) all[k] = Simd::load(y + k * y_stride + K * part);
  }
  for (int r = 0; r < t.count; ++r) {
    if constexpr (first == 0) __builtin_prefetch(t.next[r] + scales);
    const typename Simd::V scale = Simd::halves(t.rows[r] + scales, whole ? Simd::lanes : n);
    typename Simd::V factors[T];
    for (int k = 0; k < T; ++k) {
      factors[k] = Simd::mul(scale, Simd::broadcast(t.factors[r][k]));
      if constexpr (sum_factors) all[k] = Simd::add(all[k], factors[k]);
    }
    for (int s = 0; s < S; ++s) {
      const int64_t at = quants + s * in_group * 4;
      if constexpr (first == 0) __builtin_prefetch(t.next[r] + at);
      const typename Simd::I words = whole ? Simd::words(t.rows[r] + at) : Simd::words(t.rows[r] + at, n);
      add_word<Simd, format, first, N, T>(words, factors, sums[s]);
    }
  }
  for (int k = 0; k < T; ++k)
    for (int s = 0; s < S; ++s) {
      for (int p = 0; p < N; ++p) Simd::store(y + k * y_stride + s * next_word + (first + p) * part, sums[s][k][p]);
      if constexpr (sum_factors) Simd::store(y + k * y_stride + s * next_word + K * part, all[k]);
    }
  if constexpr (first + N < K) add_lanes<Simd, format, T, S, whole, first + N>(t, quants, scales, n, in_group, y, y_stride);
}

// A unit of block formats is one word of each block of a group.
struct Unit {
  int64_t first_block;
  int64_t blocks;
  int step;
  int64_t offset;  // of its words, in bytes
};

template <Format format>
inline Unit unit_at(int64_t unit, int64_t width) {
  constexpr int steps = words_per_block(format);
  const int64_t first = unit / steps * hybrid::group_blocks;
  const int64_t n = smaller(hybrid::group_blocks, width / hybrid::block - first);
  const int step = static_cast<int>(unit % steps);
  return {first, n, step, first * 4 * steps + step * n * 4};
}

// The sums of S units, of the same blocks, of T tokens, [parts + 1][group_blocks] each and y_stride apart, += the tile's rows.
template <class Simd, Format format, int T, int S>
inline void add_units(const Tile<T>& t, const Unit& unit, int64_t width, float* y, int64_t y_stride) {
  const int64_t scales = quant_bytes(format, width) + 2 * unit.first_block, n = unit.blocks;
  int64_t l = 0;
  for (; l + Simd::lanes <= n; l += Simd::lanes)
    add_lanes<Simd, format, T, S, true>(t, unit.offset + 4 * l, scales + 2 * l, Simd::lanes, n, y + l, y_stride);
  if (l < n) add_lanes<Simd, format, T, S, false>(t, unit.offset + 4 * l, scales + 2 * l, n - l, n, y + l, y_stride);
}

// Puts a unit's sums where they belong.
template <class Simd, Format format>
inline void spread(const Unit& unit, const float* sums, float* y) {
  constexpr int K = parts<format>();
  for (int k = 0; k < K; ++k)
    for (int64_t l = 0; l < unit.blocks; ++l)
      y[(unit.first_block + l) * hybrid::block + column<format>(unit.step, k)] =
          sums[k * hybrid::group_blocks + l] - offset<Simd, format>() * sums[K * hybrid::group_blocks + l];
}

}  // namespace
