// Random weights and inputs, as the kernels take them.
#pragma once

#include <vector>

#include "check.hpp"

namespace check {

using hybrid::Format;
using hybrid::Input;
using hybrid::Kernels;

constexpr Format weight_formats[] = {hybrid::bf16, hybrid::f16, hybrid::q8_0, hybrid::q4_0};

// 32 k for k = 1..40 in block formats, so with partial groups; odd and whole widths of the others.
std::vector<int64_t> widths(Format format);

// Rows of `parts` vectors of n weights, stride_bytes apart, with bytes 255 between them; nothing may be read after the
// last.
struct Rows {
  Guarded<unsigned char> bytes;
  int64_t stride_bytes;
};
Rows random_rows(Random& random, Format format, int64_t n, int parts, int64_t rows);

// The inputs of a batch, and each token's alone.
class Batch {
 public:
  Batch(Random& random, const Kernels& portable, Format format, int64_t width, int tokens);
  Input all() const;
  Input one(int token) const;
  float usual() const;  // how large a random row's dot product with an input usually is

 private:
  int64_t width_;
  int tokens_;
  Format format_;
  bool blocks_;
  Guarded<float> x_, scales_;
  Guarded<int8_t> codes_;
  Guarded<int32_t> sums_;
};

}  // namespace check
