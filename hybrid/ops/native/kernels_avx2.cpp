// Kernels for x86-64 with AVX2, FMA and F16C.
#include "kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "simd_avx2.hpp"

#include "kernels_impl.hpp"

const hybrid::Kernels* hybrid::avx2_kernels() {
  static constexpr Kernels kernels = table<Simd>("avx2");
  return &kernels;
}

#else

const hybrid::Kernels* hybrid::avx2_kernels() { return nullptr; }

#endif
