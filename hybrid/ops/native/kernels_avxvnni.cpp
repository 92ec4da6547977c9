// Kernels for x86-64 with AVX2, FMA, F16C and AVX-VNNI.
#include "kernels.hpp"

#if defined(__AVXVNNI__) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "simd_avx2.hpp"

#include "kernels_impl.hpp"

const hybrid::Kernels* hybrid::avxvnni_kernels() {
  static constexpr Kernels kernels = table<Simd>("avxvnni");
  return &kernels;
}

#else

const hybrid::Kernels* hybrid::avxvnni_kernels() { return nullptr; }

#endif
