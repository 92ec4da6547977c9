// What is done to one token's state, and conversions: bit for bit where nothing is summed.
#include <cfloat>
#include <cmath>
#include <vector>

#include "weights.hpp"

namespace check {
namespace {

using hybrid::block;

constexpr int64_t lengths[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 255, 1000};

// Values at which rounding to 16 bits or to codes changes its mind, and the ends of the formats.
std::vector<float> turning_points() {
  std::vector<float> points = {0.0f,     -0.0f,        INFINITY,     -INFINITY, FLT_MAX,   -FLT_MAX,
                               FLT_MIN,  FLT_TRUE_MIN, 65504,        65519.996f, 65520,    65536,
                               0x1p-14f, 0x1.ffcp-15f, 0x1.8p-24f,   0x1p-24f,  0x1p-25f,  0x1.000002p-25f};
  for (int e = -26; e < 17; ++e)
    for (int m = 0; m < 8; ++m) points.push_back(std::ldexp(1 + (2 * m + 1) * 0x1p-11f, e));
  for (int m = 0; m < 8; ++m) points.push_back(1 + (2 * m + 1) * 0x1p-8f);
  return points;
}

void check_conversions(const Kernels& table, const Kernels& portable, Random& random) {
  for (const Format format : {hybrid::bf16, hybrid::f16, hybrid::f32}) {
    const int64_t bytes = hybrid::vector_bytes(format, 1);
    context(table.name, ' ', name(format), ": conversion");
    std::vector<float> from = turning_points();
    for (int i = 0; i < 5000; ++i) from.push_back(std::ldexp(random.real(), static_cast<int>(random.below(60)) - 35));
    for (int64_t n = 1; n < static_cast<int64_t>(from.size()); n += n < 40 ? 1 : 97) {
      Guarded<float> x(n);
      std::memcpy(x.get(), from.data() + random.below(from.size() - n), n * sizeof(float));
      Guarded<unsigned char> a(n * bytes), b(n * bytes);
      table.narrow[format](x.get(), n, a.get()), portable.narrow[format](x.get(), n, b.get());
      same_bits("narrow", a.get(), b.get(), n * bytes);
      Guarded<float> wide_a(n), wide_b(n);
      table.widen[format](a.get(), n, wide_a.get()), portable.widen[format](a.get(), n, wide_b.get());
      same_bits("widen", wide_a.get(), wide_b.get(), n * sizeof(float));
    }
    const std::vector<float> unknown(17, NAN);
    std::vector<float> wide(17);
    unsigned char narrow[17 * sizeof(float)];
    table.narrow[format](unknown.data(), 17, narrow), table.widen[format](narrow, 17, wide.data());
    for (const float v : wide) same("NaN kept", std::isnan(v), true);
  }
  Guarded<uint16_t> halves(0x7c01);  // every half that is not a NaN
  for (int64_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  Guarded<float> a(halves.size()), b(halves.size());
  const auto* const from = reinterpret_cast<const unsigned char*>(halves.get());
  table.widen[hybrid::f16](from, halves.size(), a.get()), portable.widen[hybrid::f16](from, halves.size(), b.get());
  same_bits("widen all", a.get(), b.get(), halves.size() * sizeof(float));
  for (const Format format : {hybrid::q8_0, hybrid::q4_0}) {
    for (const int64_t n : widths(format)) {
      context(table.name, ' ', name(format), ": widen ", n);
      const Rows row = random_rows(random, format, n, 1, 1);
      Guarded<float> x(n), y(n);
      table.widen[format](row.bytes.get(), n, x.get()), portable.widen[format](row.bytes.get(), n, y.get());
      same_bits("widen", x.get(), y.get(), n * sizeof(float));
    }
  }
}

void check_rounding(const Kernels& table, const Kernels& portable, Random& random) {
  for (const int64_t n : widths(hybrid::q8_0)) {
    context(table.name, ": round ", n, " values to blocks");
    for (int kind = 0; kind < 4; ++kind) {
      Guarded<float> x = random_floats(random, n);
      for (int64_t i = 0; i < n; ++i) {
        if (kind == 1) x[i] = std::ldexp(x[i], static_cast<int>(random.below(60)) - 30);
        if (kind == 2) x[i] = i % block ? static_cast<float>(random.below(255) - 127) / 2 : 127.0f;  // ties
        if (kind == 3 && (i / block) % 2) x[i] = i % 2 ? 0.0f : -0.0f;
      }
      const int64_t blocks = n / block;
      Guarded<int8_t> codes(n), other_codes(n);
      Guarded<float> scales(blocks), other_scales(blocks);
      Guarded<int32_t> sums(blocks), other_sums(blocks);
      table.round_to_blocks(x.get(), n, codes.get(), scales.get(), sums.get());
      portable.round_to_blocks(x.get(), n, other_codes.get(), other_scales.get(), other_sums.get());
      same_bits("codes", codes.get(), other_codes.get(), n);
      same_bits("scales", scales.get(), other_scales.get(), blocks * sizeof(float));
      same_bits("sums", sums.get(), other_sums.get(), blocks * sizeof(int32_t));
    }
  }
}

void check_norms(const Kernels& table, const Kernels& portable, Random& random) {
  for (const int64_t n : lengths) {
    context(table.name, ": norms and sums of ", n, " values");
    const Guarded<float> x = random_floats(random, n), w = random_floats(random, n), b = random_floats(random, n);
    Guarded<float> y(n), z(n);
    table.rms_norm(x.get(), w.get(), n, 1e-5f, y.get()), portable.rms_norm(x.get(), w.get(), n, 1e-5f, z.get());
    close("rms_norm", y.get(), z.get(), n);
    for (const float* bias : {static_cast<const float*>(b.get()), static_cast<const float*>(nullptr)}) {
      table.layer_norm(x.get(), w.get(), bias, n, 1e-2f, y.get());
      portable.layer_norm(x.get(), w.get(), bias, n, 1e-2f, z.get());
      close("layer_norm", y.get(), z.get(), n);
    }
    table.add(x.get(), b.get(), n, y.get()), portable.add(x.get(), b.get(), n, z.get());
    same_bits("add", y.get(), z.get(), n * sizeof(float));
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(y.get(), x.get(), n * sizeof(float));
      y[i] = y[random.below(n)] = 2;
      int64_t first = 0;
      while (y[first] != 2) ++first;
      same("greatest", table.greatest(y.get(), n), first);
      for (const float bad : {INFINITY, -INFINITY, NAN}) {
        y[i] = bad;
        same("greatest", table.greatest(y.get(), n), -1);
      }
    }
  }
}

void check_rotation(const Kernels& table, const Kernels& portable, Random& random) {
  for (int64_t head_dim = 2; head_dim <= 136; head_dim += head_dim < 40 ? 2 : 32) {
    for (int64_t heads = 1; heads <= 3; ++heads) {
      context(table.name, ": rotate ", heads, " heads of ", head_dim);
      const Guarded<float> x = random_floats(random, heads * head_dim), y(heads * head_dim);
      const int64_t half = 1 + random.below(head_dim / 2);
      const Guarded<float> cosines(half), sines(half);
      for (int64_t i = 0; i < half; ++i) {
        const float angle = random.real() * 4;
        cosines[i] = std::cos(angle), sines[i] = std::sin(angle);
      }
      std::memcpy(y.get(), x.get(), x.size() * sizeof(float));
      table.rotate(x.get(), cosines.get(), sines.get(), heads, head_dim, 2 * half);
      portable.rotate(y.get(), cosines.get(), sines.get(), heads, head_dim, 2 * half);
      close("rotate", x.get(), y.get(), heads * head_dim);
    }
  }
}

}  // namespace

void check_state(const Kernels& table, const Kernels& portable) {
  Random random(1);
  check_conversions(table, portable, random);
  check_rounding(table, portable, random);
  check_norms(table, portable, random);
  check_rotation(table, portable, random);
}

}  // namespace check
