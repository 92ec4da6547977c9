// Dot products of rows and inputs, as templates over a SIMD type and the weight format.
//
// Every dot product is one chain of fused additions for each lane, whose order depends on the sizes alone. So a token's
// result has the same bits alone and beside other tokens, and whichever thread computes it.
#pragma once

#include <type_traits>

#include "kernels.hpp"

namespace {

using hybrid::divide_up;
using hybrid::element_bytes;
using hybrid::Format;
using hybrid::in_blocks;
using hybrid::Input;
using hybrid::quant_bytes;
using hybrid::words_per_block;

using Bytes = const unsigned char*;

constexpr int line = 64;          // bytes of a cache line
constexpr int64_t ahead = 8192;   // bytes asked for before they are read, of all rows that are read together
constexpr int chains = 2;         // sums that a dot product of 16-bit weights is kept in: additions take four cycles

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a < b ? b : a; }

// Rows and tokens whose dot products are formed together, as many as registers hold sums for: rows share what is loaded of
// the inputs, tokens what is loaded of the rows.
template <class Simd, Format format>
constexpr int rows_together() { return in_blocks(format) ? Simd::rows_of_blocks : Simd::rows_of_halves; }
template <class Simd, Format format>
constexpr int tokens_together() { return in_blocks(format) ? Simd::tokens_of_blocks : Simd::tokens_of_halves; }

// The same value, which on x86 from here on stays in its register: compilers would load it anew for each product.
template <class Register>
inline Register held(Register value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
  return value;
}

// What is read later is asked for meanwhile. Mapped files lie in small pages, at whose ends the processor's own prefetching
// stops: without this, reading is far slower. Where groups of tokens take their turns with the same rows, each asks for
// its share of the rows after them, so that memory works all the time.
class Ahead {
 public:
  // The vectors `next` of `size` bytes come some rows later; this is one of so many turns with the rows before them.
  template <int R>
  Ahead(const Bytes (&w)[R], const Bytes (&next)[R], int64_t size, int turn, int turns)
      : w_(w), next_(next), size_(size), reach_(turns > 1 ? size : smaller(ahead / R, size)), left_(turn), turns_(turns) {}

  // Once for each step of a product: asks for the `count` bytes, from `at` on, of what comes `reach` bytes later.
  template <int R>
  void step(int64_t at, int64_t count) {
    const bool here = at + reach_ < size_;
    for (int r = 0; r < R; ++r) {
      if (left_-- > 0) continue;
      left_ = turns_ - 1;
      const Bytes from = here ? w_[r] + at + reach_ : next_[r] + (at + reach_ - size_);
      for (int64_t k = 0; k < count; k += line) __builtin_prefetch(from + k);
    }
  }

 private:
  const Bytes *w_, *next_;
  int64_t size_, reach_;
  int left_, turns_;
};

struct NotAhead {  // asks for nothing
  template <int R> void step(int64_t, int64_t) {}
};

// How many rows further on the row lies that is asked for while a row of so many bytes is multiplied.
inline int64_t rows_ahead(int64_t size, int together) { return ((ahead - 1) / (together * size) + 1) * together; }

template <class Simd, int R, int T>
inline void sum_lanes(const typename Simd::V (&sums)[R][T], float (&out)[R][T]) {
  constexpr int count = R * T;
  typename Simd::V all[count];
  for (int i = 0; i < count; ++i) all[i] = sums[i / T][i % T];
  float* const to = &out[0][0];
  for (int i = 0; i + 4 <= count; i += 4) Simd::sum4({all[i], all[i + 1], all[i + 2], all[i + 3]}, to + i);
  for (int i = count / 4 * 4; i < count; ++i) to[i] = Simd::sum(all[i]);
}

// out[r][t] = w[r] . x[t] for 16-bit weights.
template <class Simd, Format format, int R, int T, class Later>
[[gnu::always_inline]] inline void dot_halves(const Bytes (&w)[R], const Input& in, const int (&tokens)[T], Later later,
                                              float (&out)[R][T]) {
  typename Simd::V sums[R][T][chains];
  const float* x[T];
  for (int t = 0; t < T; ++t) x[t] = in.x + tokens[t] * in.width;
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      for (int c = 0; c < chains; ++c) sums[r][t][c] = Simd::zero();
  constexpr int step = line / 2;
  const int64_t n = in.width;
  int64_t j = 0;
  for (; j + step <= n; j += step) {
    later.template step<R>(2 * j, line);
    for (int k = 0; k < step / Simd::lanes; ++k) {
      const int64_t at = j + k * Simd::lanes;
      typename Simd::V wide[R];
      for (int r = 0; r < R; ++r) wide[r] = Simd::template widen<format>(w[r] + 2 * at);
      for (int t = 0; t < T; ++t) {
        typename Simd::V xs = Simd::load(x[t] + at);
        if constexpr (R > 1) xs = held(xs);
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
  typename Simd::V both[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) both[r][t] = Simd::add(sums[r][t][0], sums[r][t][1]);
  sum_lanes<Simd>(both, out);
}

// Some tokens' inputs, rounded to blocks.
template <int T>
struct Rounded {
  Rounded(const Input& in, const int (&tokens)[T]) {
    for (int t = 0; t < T; ++t) {
      codes[t] = in.codes + tokens[t] * in.width;
      scales[t] = in.scales + tokens[t] * (in.width / hybrid::block);
      sums[t] = in.sums + tokens[t] * (in.width / hybrid::block);
    }
  }
  const int8_t* codes[T];
  const float* scales[T];
  const int32_t* sums[T];
};

// The blocks `first` to `first + n` (at most a vector's lanes), which begin at place `at` of a group of `in_group`: their
// words are multiplied and added up as integers, a lane for each block, then scaled. `known` is n where it is known when
// compiled: all lanes or half of them; else 0, and loads are masked, which can be several times slower. Of half as many
// blocks as lanes, a vector takes P = 2 rows.
template <class Simd, Format format, int R, int T, int known, int P = 1>
[[gnu::always_inline]] inline void dot_lanes(const Bytes (&w)[P * R], int64_t scales, const Rounded<T>& x, int64_t first,
                                             int64_t n, int64_t at, int64_t in_group, typename Simd::V (&sums)[R][T]) {
  const auto words = [n](const void* p) {
    if constexpr (P == 2) return Simd::words_twice(p);
    else if constexpr (known == Simd::lanes) return Simd::words(p);
    else if constexpr (known != 0) return Simd::half_words(p);
    else return Simd::words(p, n);
  };
  const auto weights = [&](int r, int64_t offset) {
    if constexpr (P == 2) return Simd::words_of_two(w[2 * r] + offset, w[2 * r + 1] + offset);
    else return words(w[r] + offset);
  };
  const auto floats = [n](const float* p) {
    if constexpr (P == 2) return Simd::load_twice(p);
    else return known == Simd::lanes ? Simd::load(p) : Simd::load(p, n);
  };
  constexpr int steps = words_per_block(format);
  constexpr int offset = format == hybrid::b1 ? 1 : format == hybrid::q4_0 ? 8 : Simd::signed_offset;
  const int64_t quants = (first - at) * 4 * steps + 4 * at, codes = (first - at) * hybrid::block + 4 * at;
  const auto less = [&](int t) { return Simd::times(words(x.sums[t] + first), -offset); };
  constexpr bool begun = Simd::whole_words && offset != 0 && format != hybrid::b1;  // with what is taken off
  typename Simd::I products[R][T];
  for (int t = 0; t < T; ++t) {
    if constexpr (begun) products[0][t] = less(t);
    else products[0][t] = Simd::zero_words();
    for (int r = 1; r < R; ++r) products[r][t] = products[0][t];
  }
  for (int s = 0; s < steps; ++s) {
    const int64_t step = s * in_group * 4;
    if constexpr (format == hybrid::q4_0) {
      typename Simd::I low[R], high[R];
      for (int r = 0; r < R; ++r) {
        const typename Simd::I v = weights(r, quants + step);
        low[r] = Simd::low(v), high[r] = Simd::high(v);
      }
      for (int t = 0; t < T; ++t) {
        typename Simd::I xl = words(x.codes[t] + codes + step), xh = words(x.codes[t] + codes + step + 4 * in_group * 4);
        if constexpr (R > 1) xl = held(xl), xh = held(xh);
        for (int r = 0; r < R; ++r)
          products[r][t] = Simd::dot_nibbles(Simd::dot_nibbles(products[r][t], low[r], xl), high[r], xh);
      }
    } else if constexpr (format == hybrid::b1) {
      typename Simd::I bits[R];
      for (int r = 0; r < R; ++r) bits[r] = weights(r, quants);
      for (int k = 0; k < 8; ++k) {  // the lowest bit of each byte is a weight of the input's word k
        typename Simd::I ones[R];
        for (int r = 0; r < R; ++r) ones[r] = Simd::lowest_bits(bits[r]), bits[r] = Simd::next_bits(bits[r]);
        for (int t = 0; t < T; ++t) {
          typename Simd::I xs = words(x.codes[t] + codes + k * in_group * 4);
          if constexpr (R > 1) xs = held(xs);
          for (int r = 0; r < R; ++r) products[r][t] = Simd::dot_nibbles(products[r][t], ones[r], xs);
        }
      }
    } else {
      typename Simd::I v[R];
      for (int r = 0; r < R; ++r) v[r] = Simd::as_signed(weights(r, quants + step));
      for (int t = 0; t < T; ++t) {
        typename Simd::I xs = words(x.codes[t] + codes + step);
        if constexpr (R > 1) xs = held(xs);
        for (int r = 0; r < R; ++r) products[r][t] = Simd::dot_signed(products[r][t], v[r], xs);
      }
    }
  }
  typename Simd::V factors[R];
  for (int r = 0; r < R; ++r) {
    const int64_t from = scales + 2 * first;
    if constexpr (P == 2) factors[r] = Simd::halves_of_two(w[2 * r] + from, w[2 * r + 1] + from);
    else factors[r] = Simd::halves(w[r] + from, known ? known : n);
  }
  for (int t = 0; t < T; ++t) {
    const typename Simd::V xs = floats(x.scales[t] + first);
    for (int r = 0; r < R; ++r) {
      typename Simd::I sum = format == hybrid::q8_0 ? products[r][t] : Simd::whole(products[r][t]);
      if constexpr (format == hybrid::b1) sum = Simd::add_words(sum, sum);  // a weight is 2 bit - 1
      if constexpr (offset != 0 && !begun) sum = Simd::add_words(sum, less(t));
      sums[r][t] = Simd::fma(Simd::to_float(sum), Simd::mul(factors[r], xs), sums[r][t]);
    }
  }
}

// out[r][t] = w[r] . x[t] for block formats.
template <class Simd, Format format, int R, int T, class Later>
[[gnu::always_inline]] inline void dot_blocks(const Bytes (&w)[R], const Input& in, const int (&tokens)[T], Later later,
                                              float (&out)[R][T]) {
  constexpr int64_t block_bytes = hybrid::vector_bytes(format, hybrid::block), G = hybrid::group_blocks;
  const int64_t blocks = in.width / hybrid::block, scales = quant_bytes(format, in.width);
  typename Simd::V sums[R][T];
  const Rounded<T> x(in, tokens);
  for (auto& of_row : sums)
    for (auto& sum : of_row) sum = Simd::zero();
  int64_t g = 0;
  for (; g + G <= blocks; g += G) {
    later.template step<R>(g * block_bytes, G * block_bytes);
    for (int64_t l = 0; l < G; l += Simd::lanes)
      dot_lanes<Simd, format, R, T, Simd::lanes>(w, scales, x, g + l, Simd::lanes, l, G, sums);
  }
  if (const int64_t n = blocks - g) {
    later.template step<R>(g * block_bytes, n * block_bytes);
    int64_t l = 0;
    for (; l + Simd::lanes <= n; l += Simd::lanes)
      dot_lanes<Simd, format, R, T, Simd::lanes>(w, scales, x, g + l, Simd::lanes, l, n, sums);
    constexpr int half = Simd::lanes / 2;
    if (n - l == half) dot_lanes<Simd, format, R, T, half>(w, scales, x, g + l, half, l, n, sums);
    else if (l < n) dot_lanes<Simd, format, R, T, 0>(w, scales, x, g + l, n - l, l, n, sums);
  }
  sum_lanes<Simd>(sums, out);
}

// Whether rows of so many weights are half as long as a vector has lanes, so that two of them fill one.
template <class Simd, Format format>
constexpr bool two_fill_a_vector(int64_t width) {
  return in_blocks(format) && Simd::pairs_rows && width == Simd::lanes / 2 * hybrid::block;
}

// out[t][r] = w[r] . x[t] for eight such rows.
template <class Simd, Format format, int T, class Later>
[[gnu::always_inline]] inline void dot_pairs(const Bytes (&w)[8], const Input& in, const int (&tokens)[T], Later later,
                                             float (&out)[T][8]) {
  constexpr int half = Simd::lanes / 2;
  typename Simd::V sums[4][T];
  for (auto& of_rows : sums)
    for (auto& sum : of_rows) sum = Simd::zero();
  later.template step<8>(0, hybrid::vector_bytes(format, half * hybrid::block));
  dot_lanes<Simd, format, 4, T, half, 2>(w, quant_bytes(format, in.width), Rounded<T>(in, tokens), 0, half, 0, half, sums);
  for (int t = 0; t < T; ++t) Simd::sum4_halves({sums[0][t], sums[1][t], sums[2][t], sums[3][t]}, out[t]);
}

// out[r][t] = w[r] . x[tokens[t]].
template <class Simd, Format format, int R, int T, class Later>
[[gnu::always_inline]] inline void dot(const Bytes (&w)[R], const Input& in, const int (&tokens)[T], const Later& later,
                                       float (&out)[R][T]) {
  if constexpr (in_blocks(format)) dot_blocks<Simd, format, R, T>(w, in, tokens, later, out);
  else dot_halves<Simd, format, R, T>(w, in, tokens, later, out);
}

// Calls body(T, t) for groups of T tokens from t on, `most` in each; of the last, fewer or one more than there are.
template <int most, class Body>
inline void by_tokens(int tokens, const Body& body) {
  int t = 0;
  for (; t + most <= tokens || t + 2 < tokens; t += most) body(std::integral_constant<int, most>(), t);
  if (t + 2 == tokens) body(std::integral_constant<int, 2>(), t);
  if (t + 1 == tokens) body(std::integral_constant<int, 1>(), t);
}

}  // namespace
