// Vectors of four that gcc and clang lower to whatever the architecture has.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels.hpp"
#include "narrow.hpp"

namespace {

struct Simd {
  using V = float __attribute__((vector_size(16)));
  using I = int32_t __attribute__((vector_size(16)));
  using U = uint32_t __attribute__((vector_size(16)));
  using H = uint16_t __attribute__((vector_size(8)));

  static constexpr int lanes = 4;
#if defined(__aarch64__)
  static constexpr int tokens_of_halves = 4, tokens_of_blocks = 4, tokens_of_sums = 4;
#else
  static constexpr int tokens_of_halves = 2, tokens_of_blocks = 2, tokens_of_sums = 2;
#endif
  static constexpr int rows_of_halves = 2, rows_of_blocks = 2;  // whose products are formed together, with so many tokens
  static constexpr int sums_held = 8;
  static constexpr int signed_offset = 0;
  static constexpr bool whole_words = true;  // what dot_nibbles adds to, as it does
  static constexpr int nibble_offset = 8;
  static constexpr bool pairs_rows = false;  // short ones share a vector

  static V zero() { return V{0, 0, 0, 0}; }
  static V broadcast(float value) { return V{value, value, value, value}; }
  static V fma(V a, V b, V c) { return a * b + c; }
  static V mul(V a, V b) { return a * b; }
  static V add(V a, V b) { return a + b; }
  static V max(V a, V b) { return a > b ? a : b; }
  static V abs(V v) { return (V)((U)v & 0x7fffffff); }
  static V round(V v) {
    for (int i = 0; i < lanes; ++i) v[i] = nearbyintf(v[i]);
    return v;
  }
  static V times_power_of_two(V v, V n) {  // n is whole and above -127
    return v * (V)((__builtin_convertvector(n, I) + 127) << 23);
  }
  static float sum(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static void sum4(const V (&v)[4], float* out) {
    for (int i = 0; i < 4; ++i) out[i] = sum(v[i]);
  }
  static float greatest(V v) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }

  static V load(const float* p) { return load(p, lanes); }
  static V load(const float* p, int64_t n) {
    V v = zero();
    memcpy(&v, p, n * sizeof(float));
    return v;
  }
  static void store(float* p, V v) { store(p, v, lanes); }
  static void store(float* p, V v, int64_t n) { memcpy(p, &v, n * sizeof(float)); }

  static void store_halves(uint16_t* p, V v) {
    for (int i = 0; i < lanes; ++i) p[i] = to_f16(v[i]);
  }

  template <hybrid::Format format>
  static V widen(const unsigned char* p) { return widen<format>(p, lanes); }
  template <hybrid::Format format>
  static V widen(const unsigned char* p, int64_t n) {
    if constexpr (format == hybrid::f32) {
      V v = zero();
      memcpy(&v, p, n * sizeof(float));
      return v;
    } else {
      H h = {0, 0, 0, 0};
      memcpy(&h, p, n * sizeof(uint16_t));
      const U bits = __builtin_convertvector(h, U);
      if constexpr (format == hybrid::bf16) {
        return (V)(bits << 16);
      } else {
        // Shifting puts exponent and mantissa in place; the product mends the exponent's bias, of subnormals too.
        const U magnitude = (bits & 0x7fff) << 13;
        const U value = (U)((V)magnitude * broadcast(0x1p112f));
        const U infinite_or_nan = (U)(magnitude >= (U{} + (0x7c00u << 13))) & 0x7f800000;
        return (V)(value | infinite_or_nan | ((bits & 0x8000) << 16));
      }
    }
  }

  static I words(const void* p) { return words(p, lanes); }
  static I half_words(const void* p) { return words(p, lanes / 2); }
  static I words(const void* p, int64_t n) {
    I v = {0, 0, 0, 0};
    memcpy(&v, p, n * sizeof(int32_t));
    return v;
  }
  static I times(I a, int factor) { return a * factor; }
  static I low(I w) { return w & 0x0f0f0f0f; }
  static I lowest_bits(I w) { return w & 0x01010101; }  // of each byte
  static I next_bits(I w) { return (I)((U)w >> 1); }
  static I zero_words() { return I{0, 0, 0, 0}; }
  static I add_words(I a, I b) { return a + b; }
  static I high(I w) { return (I)((U)w >> 4) & 0x0f0f0f0f; }
  static I as_signed(I w) { return w; }
  static I dot_signed(I sum, I w, I x) {
    for (int shift = 0; shift < 32; shift += 8) sum += byte(w, shift) * byte(x, shift);
    return sum;
  }
  static I dot_nibbles(I sum, I w, I x) { return dot_signed(sum, w, x); }
  static I whole(I sum) { return sum; }
  static V to_float(I v) { return __builtin_convertvector(v, V); }
  static I to_int(V v) { return __builtin_convertvector(round(v), I); }
  static void store_int(int32_t* p, I v) { memcpy(p, &v, sizeof v); }
  static V halves(const unsigned char* p, int64_t n) { return widen<hybrid::f16>(p, n); }
  template <int k>
  static V nibble(I w) { return to_float((I)((U)w >> (4 * k)) & 15); }
  template <int k>
  static V signed_byte(I w) { return to_float(byte(w, 8 * k)); }

 private:
  static I byte(I w, int shift) { return (I)((U)w << (24 - shift)) >> 24; }
};

}  // namespace
