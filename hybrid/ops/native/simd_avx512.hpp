// Vectors of sixteen: x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "kernels.hpp"

namespace {

struct Simd {
  using V = __m512;   // floats
  using I = __m512i;  // 32-bit words

  static constexpr int lanes = 16;
  static constexpr int rows_of_halves = 6, tokens_of_halves = 2;  // whose products are formed together
  static constexpr int rows_of_blocks = 4, tokens_of_blocks = 4;
  static constexpr int tokens_of_sums = 4, sums_held = 16;  // whose sums are formed together, in so many vectors
  static constexpr int signed_offset = 128;
  static constexpr bool whole_words = true;  // what dot_nibbles adds to, as it does
  static constexpr int nibble_offset = 0;
  static constexpr bool pairs_rows = true;  // short ones share a vector

  static V zero() { return _mm512_setzero_ps(); }
  static V broadcast(float value) { return _mm512_set1_ps(value); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V abs(V v) { return _mm512_abs_ps(v); }
  static V round(V v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V times_power_of_two(V v, V n) { return _mm512_scalef_ps(v, n); }
  static float sum(V v) { return _mm512_reduce_add_ps(v); }
  // The sums of four vectors, each in the order of `sum`.
  static void sum4(const V (&v)[4], float* out) {
    const V ab = add_quarters<0x44, 0xee>(v[0], v[1]), cd = add_quarters<0x44, 0xee>(v[2], v[3]);
    V s = add_quarters<0x88, 0xdd>(ab, cd);  // a quarter for each of the four
    s = add(s, _mm512_permute_ps(s, 0x4e));
    s = add(s, _mm512_permute_ps(s, 0xb1));
    const I firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, s)));
  }
  // Of four vectors, one after the other, the sums of both halves, each in the order of `sum`.
  static void sum4_halves(const V (&v)[4], float* out) {
    V ab = add_quarters<0x88, 0xdd>(v[0], v[1]), cd = add_quarters<0x88, 0xdd>(v[2], v[3]);
    ab = add(ab, _mm512_permute_ps(ab, 0x4e)), cd = add(cd, _mm512_permute_ps(cd, 0x4e));
    ab = add(ab, _mm512_permute_ps(ab, 0xb1)), cd = add(cd, _mm512_permute_ps(cd, 0xb1));
    const I firsts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutex2var_ps(ab, firsts, cd)));
  }
  static float greatest(V v) { return _mm512_reduce_max_ps(v); }

  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, V v, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), v); }

  static void store_halves(uint16_t* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  template <hybrid::Format format>
  static V widen(const unsigned char* p) {
    if constexpr (format == hybrid::f32) return _mm512_loadu_ps(p);
    else return widen<format>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <hybrid::Format format>
  static V widen(const unsigned char* p, int64_t n) {
    if constexpr (format == hybrid::f32) return _mm512_maskz_loadu_ps(mask(n), p);
    else return widen<format>(_mm256_maskz_loadu_epi16(mask(n), p));
  }

  static I words(const void* p) { return _mm512_loadu_si512(p); }
  static I half_words(const void* p) {
    return _mm512_zextsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static I words_twice(const void* p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static I words_of_two(const void* p, const void* q) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p))),
                              _mm256_loadu_si256(static_cast<const __m256i*>(q)), 1);
  }
  static V load_twice(const float* p) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }
  static V halves_of_two(const unsigned char* p, const unsigned char* q) {
    return _mm512_cvtph_ps(_mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(q), reinterpret_cast<const __m128i*>(p)));
  }
  static I words(const void* p, int64_t n) { return _mm512_maskz_loadu_epi32(mask(n), p); }
  static I times(I a, int factor) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(factor)); }
  static I low(I w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
  static I lowest_bits(I w) { return _mm512_and_si512(w, _mm512_set1_epi8(1)); }  // of each byte
  static I next_bits(I w) { return _mm512_srli_epi32(w, 1); }
  static I zero_words() { return _mm512_setzero_si512(); }
  static I add_words(I a, I b) { return _mm512_add_epi32(a, b); }
  static I high(I w) { return _mm512_and_si512(_mm512_srli_epi32(w, 4), _mm512_set1_epi8(15)); }
  // The instruction multiplies unsigned with signed bytes: with its sign bit turned over a weight is 128 too large.
  static I as_signed(I w) { return _mm512_xor_si512(w, _mm512_set1_epi8(static_cast<char>(0x80))); }
  static I dot_signed(I sum, I w, I x) { return dot_nibbles(sum, w, x); }
  static I dot_nibbles(I sum, I w, I x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "vm"(x));  // GCC's own copies the sum before and after
    return sum;
  }
  static I whole(I sum) { return sum; }
  static V to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static I to_int(V v) { return _mm512_cvtps_epi32(v); }
  static void store_int(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static V halves(const unsigned char* p, int64_t n) {
    if (n == lanes) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    if (n == lanes / 2)
      return _mm512_cvtph_ps(_mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p));
  }
  // The permutation reads the lowest four bits of a lane: sixteen floats are a table of all nibbles' values.
  template <int k>
  static V nibble(I w) {
    const V values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(k ? _mm512_srli_epi32(w, 4 * k) : w, values);
  }
  // A byte, its sign bit turned over, under the exponent that gives its lowest bit the weight of one: the float is 128 too
  // large, and a power of two. One operation and a subtraction, which no other instruction of a sum competes with.
  template <int k>
  static V signed_byte(I w) {
    constexpr int bits = 8 * (k % 2), exponent = k % 2 ? 0x47000000 : 0x4b000000;
    const I set = _mm512_ternarylogic_epi32(k < 2 ? w : _mm512_srli_epi32(w, 16), _mm512_set1_epi32(0xff << bits),
                                            _mm512_set1_epi32(exponent ^ 0x80 << bits), 0x6a);  // (a and b) xor c
    return _mm512_sub_ps(_mm512_castsi512_ps(set), _mm512_set1_ps((k % 2 ? 32768.0f : 8388608.0f) + 128));
  }

 private:
  template <int some, int others>
  static V add_quarters(V a, V b) {
    return add(_mm512_shuffle_f32x4(a, b, some), _mm512_shuffle_f32x4(a, b, others));
  }
  template <hybrid::Format format>
  static V widen(__m256i h) {
    if constexpr (format == hybrid::bf16) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
    } else {
      return _mm512_cvtph_ps(h);
    }
  }
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
};

}  // namespace
