#include "weights.hpp"

#include <cmath>

#include "narrow.hpp"

namespace check {
namespace {

void put(unsigned char* to, uint16_t v) { std::memcpy(to, &v, sizeof v); }

uint16_t random_scale(Random& random) {
  if (random.chance(0.02)) return static_cast<uint16_t>(random.below(1024));  // zero and subnormal
  return to_f16(random.real() * 0.01f);
}

void random_vector(Random& random, Format format, int64_t n, unsigned char* to) {
  if (!in_blocks(format)) {
    for (int64_t i = 0; i < n; ++i) {
      const float v = random.real();
      put(to + 2 * i, format == hybrid::bf16 ? to_bf16(v) : random.chance(0.02) ? random_scale(random) : to_f16(v));
    }
    return;
  }
  const int64_t quants = hybrid::quant_bytes(format, n);
  for (int64_t i = 0; i < quants; ++i) to[i] = static_cast<unsigned char>(random.bits());
  for (int64_t b = 0; b < n / hybrid::block; ++b) put(to + quants + 2 * b, random_scale(random));
}

}  // namespace

std::vector<int64_t> widths(Format format) {
  if (!in_blocks(format))
    return {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 95, 127, 129, 200, 333, 640};
  std::vector<int64_t> widths;
  for (int64_t k = 1; k <= 40; ++k) widths.push_back(k * hybrid::block);
  return widths;
}

Rows random_rows(Random& random, Format format, int64_t n, int parts, int64_t rows) {
  const int64_t vector = hybrid::vector_bytes(format, n), stride = parts * vector + 2 * random.below(20);
  Rows result = {Guarded<unsigned char>((rows - 1) * stride + parts * vector), stride};
  for (int64_t r = 0; r < rows; ++r)
    for (int p = 0; p < parts; ++p) random_vector(random, format, n, result.bytes.get() + r * stride + p * vector);
  return result;
}

Batch::Batch(Random& random, const Kernels& portable, Format format, int64_t width, int tokens)
    : width_(width),
      tokens_(tokens),
      format_(format),
      blocks_(in_blocks(format)),
      x_(random_floats(random, tokens * width, 3)),
      scales_(blocks_ ? tokens * width / hybrid::block : 0),
      codes_(blocks_ ? tokens * width : 0),
      sums_(scales_.size()) {
  const int64_t blocks = width / hybrid::block;
  for (int t = 0; blocks_ && t < tokens; ++t)
    portable.round_to_blocks(x_.get() + t * width, width, codes_.get() + t * width, scales_.get() + t * blocks,
                             sums_.get() + t * blocks);
}

Input Batch::all() const {
  if (!blocks_) return {x_.get(), width_, tokens_, nullptr, nullptr, nullptr};
  return {x_.get(), width_, tokens_, codes_.get(), scales_.get(), sums_.get()};
}

float Batch::usual() const {
  const float weight = format_ == hybrid::b1 ? 0.01f : format_ == hybrid::q4_0 ? 0.05f : 1;
  return std::sqrt(static_cast<float>(width_)) * weight;
}

Input Batch::one(int token) const {
  const int64_t blocks = width_ / hybrid::block;
  Input in = all();
  in.tokens = 1;
  in.x += token * width_;
  if (blocks_) in.codes += token * width_, in.scales += token * blocks, in.sums += token * blocks;
  return in;
}

}  // namespace check
