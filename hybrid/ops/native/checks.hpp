// Preconditions of the operators, checked where Python's numbers become pointers.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels.hpp"
#include "operators.hpp"

namespace hybrid {

constexpr int64_t max_features = 1 << 24;  // also outputs and rows: sizes in bytes then stay far from overflowing
constexpr int64_t max_stride = int64_t{1} << 32;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// An array that has to be there, under the name that the caller knows it by.
template <class T>
T* array(uintptr_t address, const char* name) {
  if (!address || address % alignof(T))
    throw std::invalid_argument(std::string(name) + " should be an address aligned to " + std::to_string(alignof(T)));
  return reinterpret_cast<T*>(address);
}

template <class T>
T* array_or_null(uintptr_t address, const char* name) {
  return address ? array<T>(address, name) : nullptr;
}

inline Format weight_format(int format) {
  require(format >= bf16 && format <= q4_0, "weight_format should be BF16, F16, Q8_0 or Q4_0");
  return static_cast<Format>(format);
}

inline Format matrix_format(int format) {
  require(format >= bf16 && format <= b1, "weight_format should be BF16, F16, Q8_0, Q4_0 or B1");
  return static_cast<Format>(format);
}

inline Format page_format(int format) {
  require(format == bf16 || format == f16 || format == f32, "page_format should be BF16, F16 or F32");
  return static_cast<Format>(format);
}

inline void require_size(int64_t n, const char* name) {
  if (n < 1 || n > max_features) throw std::invalid_argument(std::string(name) + " is out of range");
}

inline void require_tokens(int64_t tokens) { require(tokens >= 1 && tokens <= max_tokens, "tokens should be 1 to 16"); }

// `parts` vectors of n weights, as rows stride_bytes apart.
inline void require_stride(int64_t stride_bytes, Format format, int64_t n, int parts) {
  require(n % block == 0 || !in_blocks(format), "block formats hold multiples of 32 weights");
  require(stride_bytes >= parts * vector_bytes(format, n) && stride_bytes <= max_stride && stride_bytes % 2 == 0,
          "stride_bytes should be even and hold a row");
}

// Weights are bytes whose smallest parts are 16 bits.
inline const unsigned char* weights(uintptr_t address, const char* name) {
  return reinterpret_cast<const unsigned char*>(array<const uint16_t>(address, name));
}

inline Matrix matrix(uintptr_t weight, int64_t stride_bytes, int format, int64_t out_features, int64_t in_features,
                     uintptr_t bias, float* y) {
  const Format known = matrix_format(format);
  require_size(out_features, "out_features");
  require_size(in_features, "in_features");
  require_stride(stride_bytes, known, in_features, 1);
  return {weights(weight, "weight"), stride_bytes, out_features, known, array_or_null<const float>(bias, "bias"), y};
}

inline Bank bank(uintptr_t rows, int64_t stride_bytes, int64_t n_rows, int64_t hidden, int format, bool gated,
                 int activation, float cutoff, bool skip_inactive, uintptr_t bias) {
  const Format known = weight_format(format);
  require(activation >= relu && activation <= drelu,
          "activation should be RELU, RELU2, SILU, GELU, GELU_TANH or DRELU");
  require(activation != drelu || gated, "DRELU is for rows with a gate");
  require(std::isfinite(cutoff) && cutoff >= 0, "cutoff should be finite and not negative");
  require(n_rows >= 0 && n_rows <= max_features, "n_rows is out of range");
  require_size(hidden, "hidden");
  require_stride(stride_bytes, known, hidden, gated ? 3 : 2);
  require(!bias || !gated, "bias is for models without a gate");
  return {n_rows ? weights(rows, "rows") : nullptr,
          stride_bytes,
          n_rows,
          hidden,
          known,
          gated,
          static_cast<Activation>(activation),
          cutoff,
          skip_inactive,
          array_or_null<const float>(bias, "bias")};
}

inline Shown shown(uintptr_t activations, int64_t stride, int64_t n_rows) {
  require(!activations || (stride >= n_rows && stride <= max_features), "activations_stride should be at least n_rows");
  return {array_or_null<float>(activations, "activations"), stride};
}

inline Tally tally(uintptr_t counts, int64_t bucket_rows, int64_t first_row) {
  require(bucket_rows >= 1 && bucket_rows <= max_features && (bucket_rows & (bucket_rows - 1)) == 0,
          "bucket_rows should be a power of two");
  require(first_row >= 0 && first_row <= max_features, "first_row is out of range");
  int shift = 0;
  while (int64_t{1} << shift < bucket_rows) ++shift;
  return {array_or_null<int64_t>(counts, "tally"), shift, first_row};
}

}  // namespace hybrid
