// Kernels for x86-64 with AVX2, FMA and F16C.
#include <string.h>

#include "kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace {

using hybrid::WeightFormat;

struct Simd {
  using V = __m256;

  static constexpr int lanes = 8;
  static constexpr int token_block = 2;  // 4 rows x 2 tokens of accumulators fit 16 registers

  static V zero() { return _mm256_setzero_ps(); }
  static V broadcast(float value) { return _mm256_set1_ps(value); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const float* p, int64_t n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, V v, int64_t n) { _mm256_maskstore_ps(p, mask(n), v); }

  template <WeightFormat format>
  static V widen(const uint16_t* p) {
    return widen<format>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <WeightFormat format>
  static V widen(const uint16_t* p, int64_t n) {
    __m128i h = _mm_setzero_si128();
    memcpy(&h, p, n * sizeof(uint16_t));
    return widen<format>(h);
  }

 private:
  template <WeightFormat format>
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

#include "kernels_impl.hpp"

const hybrid::Kernels* hybrid::avx2_kernels() {
  static constexpr Kernels kernels = table<Simd>("avx2");
  return &kernels;
}

#else

const hybrid::Kernels* hybrid::avx2_kernels() { return nullptr; }

#endif
