// Kernels for x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
#include "kernels.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

#include "simd_avx512.hpp"

#include "kernels_impl.hpp"

const hybrid::Kernels* hybrid::avx512_kernels() {
  static constexpr Kernels kernels = table<Simd>("avx512");
  return &kernels;
}

#else

const hybrid::Kernels* hybrid::avx512_kernels() { return nullptr; }

#endif
