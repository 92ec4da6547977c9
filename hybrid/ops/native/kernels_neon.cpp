// Kernels for arm64 with the dot product instructions.
#include "kernels.hpp"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include "simd_neon.hpp"

#include "kernels_impl.hpp"

const hybrid::Kernels* hybrid::neon_kernels() {
  static constexpr Kernels kernels = table<Simd>("neon");
  return &kernels;
}

#else

const hybrid::Kernels* hybrid::neon_kernels() { return nullptr; }

#endif
