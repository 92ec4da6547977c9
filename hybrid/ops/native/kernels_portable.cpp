// Kernels for any CPU.
#include "kernels.hpp"

#include "simd_portable.hpp"

#include "kernels_impl.hpp"

const hybrid::Kernels* hybrid::portable_kernels() {
  static constexpr Kernels kernels = table<Simd>("portable");
  return &kernels;
}
