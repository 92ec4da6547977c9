// Weighted sums of rows' vectors over a range of columns, as templates over a SIMD type and the weight format.
//
// A thread owns columns and adds all rows to them, in the order of the rows: no partial sums, and the same bits whoever
// owns the columns. Rows are taken in tiles, whose sums stay in registers while all rows of the tile are added.
#pragma once

#include <string.h>

#include "dot_impl.hpp"

namespace {

using hybrid::unit_columns;

constexpr int tile = 16;  // rows added in one pass over the sums

// The vectors of one token's rows in a tile, and the factor of each; `next` are asked for meanwhile, piece by piece, so
// that memory and arithmetic take their time together.
struct Tile {
  Bytes rows[tile];
  Bytes next[tile];
  float factors[tile];
  int count;
};

// y[first..last) += sum over the tile's rows of factor * w, for 16-bit weights.
template <class Simd, Format format>
inline void add_halves(const Tile& t, float* y, int64_t first, int64_t last) {
  constexpr int U = 8;
  int64_t j = first;
  for (; j + U * Simd::lanes <= last; j += U * Simd::lanes) {
    typename Simd::V sums[U];
    for (int u = 0; u < U; ++u) sums[u] = Simd::load(y + j + u * Simd::lanes);
    for (int r = 0; r < t.count; ++r) {
      const typename Simd::V factor = Simd::broadcast(t.factors[r]);
      for (int k = 0; k < U * Simd::lanes * 2; k += line) __builtin_prefetch(t.next[r] + 2 * j + k);
      for (int u = 0; u < U; ++u)
        sums[u] = Simd::fma(Simd::template widen<format>(t.rows[r] + 2 * (j + u * Simd::lanes)), factor, sums[u]);
    }
    for (int u = 0; u < U; ++u) Simd::store(y + j + u * Simd::lanes, sums[u]);
  }
  for (; j < last; j += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, last - j);
    typename Simd::V sum = Simd::load(y + j, rest);
    for (int r = 0; r < t.count; ++r)
      sum = Simd::fma(Simd::template widen<format>(t.rows[r] + 2 * j, rest), Simd::broadcast(t.factors[r]), sum);
    Simd::store(y + j, sum, rest);
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

template <class Simd, Format format, int k = 0>
inline void add_word(typename Simd::I words, typename Simd::V factor, typename Simd::V* sums) {
  if constexpr (k < parts<format>()) {
    sums[k] = Simd::fma(weight<Simd, format, k>(words), factor, sums[k]);
    add_word<Simd, format, k + 1>(words, factor, sums);
  }
}

// Where a SIMD type gives nibbles as they are stored, 8 too large, 8 times the factors' sum is taken off in the end.
template <class Simd, Format format>
constexpr int offset() { return format == hybrid::q4_0 ? Simd::nibble_offset : 0; }

// Sums of one word of each of n blocks, kept [parts + 1][group_blocks]: lane l of part k belongs to block l, and the
// last part is the factors' sum.
template <class Simd, Format format, bool whole>
inline void add_lanes(const Tile& t, int64_t quants, int64_t scales, int64_t n, float* y) {
  constexpr int K = parts<format>();
  typename Simd::V sums[K], factors = Simd::load(y + K * hybrid::group_blocks);
  for (int k = 0; k < K; ++k) sums[k] = Simd::load(y + k * hybrid::group_blocks);
  for (int r = 0; r < t.count; ++r) {
    const typename Simd::V scale = Simd::halves(t.rows[r] + scales, whole ? Simd::lanes : n);
    const typename Simd::V factor = Simd::mul(scale, Simd::broadcast(t.factors[r]));
    __builtin_prefetch(t.next[r] + quants);
    if constexpr (offset<Simd, format>() != 0) factors = Simd::add(factors, factor);
    add_word<Simd, format>(whole ? Simd::words(t.rows[r] + quants) : Simd::words(t.rows[r] + quants, n), factor, sums);
  }
  for (int k = 0; k < K; ++k) Simd::store(y + k * hybrid::group_blocks, sums[k]);
  if constexpr (offset<Simd, format>() != 0) Simd::store(y + K * hybrid::group_blocks, factors);
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

// The unit's sums [parts + 1][group_blocks] += the tile's rows.
template <class Simd, Format format>
inline void add_unit(const Tile& t, const Unit& unit, int64_t width, float* y) {
  const int64_t scales = quant_bytes<format>(width) + 2 * unit.first_block;
  int64_t l = 0;
  for (; l + Simd::lanes <= unit.blocks; l += Simd::lanes)
    add_lanes<Simd, format, true>(t, unit.offset + 4 * l, scales + 2 * l, Simd::lanes, y + l);
  if (l < unit.blocks) add_lanes<Simd, format, false>(t, unit.offset + 4 * l, scales + 2 * l, unit.blocks - l, y + l);
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
