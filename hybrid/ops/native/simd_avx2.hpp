// Vectors of eight: x86-64 with AVX2, FMA and F16C, and with AVX-VNNI where the compiler is told so.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "kernels.hpp"

namespace {

struct Simd {
  using V = __m256;   // floats
  using I = __m256i;  // 32-bit words

  static constexpr int lanes = 8;
  static constexpr int rows_of_halves = 2, tokens_of_halves = 2;  // whose products are formed together
  static constexpr int rows_of_blocks = 3, tokens_of_blocks = 2;
  static constexpr int tokens_of_sums = 2, sums_held = 8;  // whose sums are formed together, in so many vectors
#if defined(__AVXVNNI__)
  static constexpr int signed_offset = 128;
  static constexpr bool whole_words = true;  // what dot_nibbles adds to, as it does
#else
  static constexpr int signed_offset = 0;
  static constexpr bool whole_words = false;
#endif
  static constexpr int nibble_offset = 8;
  static constexpr bool pairs_rows = false;  // short ones share a vector

  static V zero() { return _mm256_setzero_ps(); }
  static V broadcast(float value) { return _mm256_set1_ps(value); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V abs(V v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
  static V round(V v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V times_power_of_two(V v, V n) {  // n is whole and above -127
    const I exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(v, _mm256_castsi256_ps(exponent));
  }
  static float sum(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // The sums of four vectors, each in the order of `sum`.
  static void sum4(const V (&v)[4], float* out) {
    const V ab = add(_mm256_permute2f128_ps(v[0], v[1], 0x20), _mm256_permute2f128_ps(v[0], v[1], 0x31));
    const V cd = add(_mm256_permute2f128_ps(v[2], v[3], 0x20), _mm256_permute2f128_ps(v[2], v[3], 0x31));
    V s = add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));  // a a c c, b b d d
    s = _mm256_hadd_ps(s, s);                                                     // a c a c, b d b d
    _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
  }
  static float greatest(V v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }

  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const float* p, int64_t n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, V v, int64_t n) { _mm256_maskstore_ps(p, mask(n), v); }

  static void store_halves(uint16_t* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  template <hybrid::Format format>
  static V widen(const unsigned char* p) {
    if constexpr (format == hybrid::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    else return widen<format>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <hybrid::Format format>
  static V widen(const unsigned char* p, int64_t n) {
    if constexpr (format == hybrid::f32) {
      return _mm256_maskload_ps(reinterpret_cast<const float*>(p), mask(n));
    } else {
      return widen<format>(few_halves(p, n));
    }
  }

  static I words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static I half_words(const void* p) {
    return _mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static I words(const void* p, int64_t n) { return _mm256_maskload_epi32(static_cast<const int*>(p), mask(n)); }
  static I times(I a, int factor) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(factor)); }
  static I low(I w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
  static I lowest_bits(I w) { return _mm256_and_si256(w, _mm256_set1_epi8(1)); }  // of each byte
  static I next_bits(I w) { return _mm256_srli_epi32(w, 1); }
  static I zero_words() { return _mm256_setzero_si256(); }
  static I add_words(I a, I b) { return _mm256_add_epi32(a, b); }
  static I high(I w) { return _mm256_and_si256(_mm256_srli_epi32(w, 4), _mm256_set1_epi8(15)); }
#if defined(__AVXVNNI__)
  // The instruction multiplies unsigned with signed bytes: with its sign bit turned over a weight is 128 too large.
  static I as_signed(I w) { return _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80))); }
  static I dot_signed(I sum, I w, I x) { return dot_nibbles(sum, w, x); }
  static I dot_nibbles(I sum, I w, I x) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "xm"(x));  // GCC's own copies the sum before and after
    return sum;
  }
  static I whole(I sum) { return sum; }
#else
  static I as_signed(I w) { return w; }
  // Pairs of products fit 16 bits: at most 2 x 128 x 127.
  static I dot_signed(I sum, I w, I x) {
    const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // A block's pairs fit 16 bits even when they are summed, at most 16 x 15 x 127: widened once, by `whole`.
  static I dot_nibbles(I sum, I w, I x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)); }
  static I whole(I sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
#endif
  static V to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static I to_int(V v) { return _mm256_cvtps_epi32(v); }
  static void store_int(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static V halves(const unsigned char* p, int64_t n) {
    return _mm256_cvtph_ps(n == lanes ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)) : few_halves(p, n));
  }
  template <int k>
  static V nibble(I w) {
    const I shifted = k ? _mm256_srli_epi32(w, 4 * k) : w;
    return _mm256_cvtepi32_ps(k < 7 ? _mm256_and_si256(shifted, _mm256_set1_epi32(15)) : shifted);
  }
  template <int k>
  static V signed_byte(I w) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(k < 3 ? _mm256_slli_epi32(w, 24 - 8 * k) : w, 24));
  }

 private:
  static __m128i few_halves(const unsigned char* p, int64_t n) {
    __m128i h = _mm_setzero_si128();
    memcpy(&h, p, n * sizeof(uint16_t));
    return h;
  }
  template <hybrid::Format format>
  static V widen(__m128i h) {
    if constexpr (format == hybrid::bf16) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
    } else {
      return _mm256_cvtph_ps(h);
    }
  }
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace
