// Kernels for x86-64 with AVX-512 F, BW, VL and DQ.
#include "kernels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

#include <immintrin.h>
#include <string.h>

namespace {

using hybrid::WeightFormat;

struct Simd {
  using V = __m512;

  static constexpr int lanes = 16;
  static constexpr int token_block = 4;  // 4 rows x 4 tokens of accumulators fit 32 registers

  static V zero() { return _mm512_setzero_ps(); }
  static V broadcast(float value) { return _mm512_set1_ps(value); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(V v) { return _mm512_reduce_add_ps(v); }

  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, V v, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), v); }

  template <WeightFormat format>
  static V widen(const uint16_t* p) {
    return widen<format>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <WeightFormat format>
  static V widen(const uint16_t* p, int64_t n) {
    return widen<format>(_mm256_maskz_loadu_epi16(mask(n), p));
  }

 private:
  template <WeightFormat format>
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

#include "kernels_impl.hpp"

const hybrid::Kernels* hybrid::avx512_kernels() {
  static constexpr Kernels kernels = table<Simd>("avx512");
  return &kernels;
}

#else

const hybrid::Kernels* hybrid::avx512_kernels() { return nullptr; }

#endif
