// Kernels for any CPU, over vectors of four that gcc and clang lower to SSE2 or NEON.
#include <string.h>

#include "kernels.hpp"

namespace {

using hybrid::WeightFormat;

struct Simd {
  using V = float __attribute__((vector_size(16)));
  using U = uint32_t __attribute__((vector_size(16)));
  using H = uint16_t __attribute__((vector_size(8)));

  static constexpr int lanes = 4;
#if defined(__aarch64__)
  static constexpr int token_block = 4;  // 32 registers
#else
  static constexpr int token_block = 2;
#endif

  static V zero() { return V{0, 0, 0, 0}; }
  static V broadcast(float value) { return V{value, value, value, value}; }
  static V fma(V a, V b, V c) { return a * b + c; }
  static float sum(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }

  static V load(const float* p) { return load(p, lanes); }
  static V load(const float* p, int64_t n) {
    V v = zero();
    memcpy(&v, p, n * sizeof(float));
    return v;
  }
  static void store(float* p, V v) { store(p, v, lanes); }
  static void store(float* p, V v, int64_t n) { memcpy(p, &v, n * sizeof(float)); }

  template <WeightFormat format>
  static V widen(const uint16_t* p) { return widen<format>(p, lanes); }

  template <WeightFormat format>
  static V widen(const uint16_t* p, int64_t n) {
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
};

}  // namespace

#include "kernels_impl.hpp"

const hybrid::Kernels* hybrid::portable_kernels() {
  static constexpr Kernels kernels = table<Simd>("portable");
  return &kernels;
}
