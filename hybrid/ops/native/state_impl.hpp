// What is done to one token's state: norms, rotary positions, rounding to blocks, narrowing, widening.
#pragma once

#include <math.h>
#include <string.h>

#include "dot_impl.hpp"
#include "narrow.hpp"

namespace {

// The sum over n elements of f(i, elements left in the vector), in four chains.
template <class Simd, class F>
inline float total(int64_t n, const F& f) {
  typename Simd::V sums[4] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
  int64_t i = 0;
  for (int k = 0; i < n; i += Simd::lanes, k = (k + 1) % 4) sums[k] = Simd::add(sums[k], f(i, smaller(Simd::lanes, n - i)));
  return Simd::sum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3])));
}

template <class Simd>
void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
  const float squares = total<Simd>(n, [x](int64_t i, int64_t rest) {
    const typename Simd::V v = Simd::load(x + i, rest);
    return Simd::mul(v, v);
  });
  const typename Simd::V scale = Simd::broadcast(1.0f / sqrtf(squares / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, n - i);
    Simd::store(y + i, Simd::mul(Simd::mul(Simd::load(x + i, rest), scale), Simd::load(weight + i, rest)), rest);
  }
}

template <class Simd>
void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y) {
  const float mean = total<Simd>(n, [x](int64_t i, int64_t rest) { return Simd::load(x + i, rest); }) / static_cast<float>(n);
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] - mean;
  const float squares = total<Simd>(n, [y](int64_t i, int64_t rest) {
    const typename Simd::V v = Simd::load(y + i, rest);
    return Simd::mul(v, v);
  });
  const typename Simd::V scale = Simd::broadcast(1.0f / sqrtf(squares / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, n - i);
    const typename Simd::V plus = bias ? Simd::load(bias + i, rest) : Simd::zero();
    Simd::store(y + i, Simd::fma(Simd::mul(Simd::load(y + i, rest), scale), Simd::load(weight + i, rest), plus), rest);
  }
}

// Rotates the halves of the first `rotary` values of each head against each other, in place.
template <class Simd>
void rotate(float* x, const float* cosines, const float* sines, int64_t heads, int64_t head_dim, int64_t rotary) {
  const int64_t half = rotary / 2;
  for (int64_t h = 0; h < heads; ++h) {
    float *const first = x + h * head_dim, *const second = first + half;
    for (int64_t i = 0; i < half; i += Simd::lanes) {
      const int64_t rest = smaller(Simd::lanes, half - i);
      const typename Simd::V a = Simd::load(first + i, rest), b = Simd::load(second + i, rest);
      const typename Simd::V c = Simd::load(cosines + i, rest), s = Simd::load(sines + i, rest);
      const typename Simd::V less = Simd::mul(s, Simd::broadcast(-1.0f));
      Simd::store(first + i, Simd::fma(b, less, Simd::mul(a, c)), rest);
      Simd::store(second + i, Simd::fma(a, s, Simd::mul(b, c)), rest);
    }
  }
}

template <class Simd>
void add(const float* a, const float* b, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, n - i);
    Simd::store(y + i, Simd::add(Simd::load(a + i, rest), Simd::load(b + i, rest)), rest);
  }
}

template <class Simd>
int64_t greatest(const float* x, int64_t n) {
  typename Simd::V most = Simd::broadcast(x[0]), sound = Simd::zero();
  int64_t i = 0;
  for (; i + Simd::lanes <= n; i += Simd::lanes) {
    const typename Simd::V v = Simd::load(x + i);
    most = Simd::max(most, v);
    sound = Simd::fma(v, Simd::zero(), sound);  // NaN as soon as a value is not finite
  }
  float best = Simd::greatest(most), rest = Simd::sum(sound);
  for (; i < n; ++i) best = x[i] > best ? x[i] : best, rest += x[i] * 0.0f;
  if (!(rest == 0)) return -1;
  for (i = 0; x[i] != best;) ++i;
  return i;
}

// Eight bits for each value of a block of 32: the greatest magnitude becomes 127. Codes lie as the weights' words do.
template <class Simd>
void round_to_blocks(const float* x, int64_t width, int8_t* codes, float* scales, int32_t* sums) {
  constexpr int words = hybrid::block / 4;
  constexpr float least = 127.0f / 3.4e38f;  // below, the inverse would be infinite: the codes are zero
  const int64_t blocks = width / hybrid::block;
  for (int64_t b = 0; b < blocks; ++b) {
    const float* const from = x + b * hybrid::block;
    typename Simd::V most = Simd::zero(), sound = Simd::zero();
    for (int i = 0; i < hybrid::block; i += Simd::lanes) {
      const typename Simd::V v = Simd::load(from + i);
      most = Simd::max(most, Simd::abs(v));
      sound = Simd::fma(v, Simd::zero(), sound);  // NaN as soon as a value is not finite, and then the scale is too
    }
    const float greatest = Simd::greatest(most) + Simd::sum(sound);
    const float inverse = greatest > least ? 127.0f / greatest : 0;
    int32_t whole[hybrid::block];
    for (int i = 0; i < hybrid::block; i += Simd::lanes)
      Simd::store_int(whole + i, Simd::to_int(Simd::mul(Simd::load(from + i), Simd::broadcast(inverse))));
    int8_t narrow[hybrid::block];
    int32_t sum = 0;
    for (int i = 0; i < hybrid::block; ++i) sum += narrow[i] = static_cast<int8_t>(whole[i]);
    const int64_t g = b / hybrid::group_blocks * hybrid::group_blocks, n = smaller(hybrid::group_blocks, blocks - g);
    int8_t* const to = codes + g * hybrid::block + 4 * (b - g);
    for (int s = 0; s < words; ++s) memcpy(to + s * n * 4, narrow + 4 * s, 4);
    scales[b] = greatest / 127.0f;
    sums[b] = sum;
  }
}

template <class Simd, Format format>
void widen(const unsigned char* weights, int64_t n, float* out) {
  if constexpr (!in_blocks(format)) {
    for (int64_t i = 0; i < n; i += Simd::lanes) {
      const int64_t rest = smaller(Simd::lanes, n - i);
      Simd::store(out + i, Simd::template widen<format>(weights + i * element_bytes(format), rest), rest);
    }
  } else {
    constexpr int steps = words_per_block(format);
    const int64_t blocks = n / hybrid::block;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t g = b / hybrid::group_blocks * hybrid::group_blocks, in_group = smaller(hybrid::group_blocks, blocks - g);
      float scale[hybrid::group_blocks];
      Simd::store(scale, Simd::halves(weights + quant_bytes(format, n) + 2 * b, 1));
      for (int s = 0; s < steps; ++s) {
        const unsigned char* const word = weights + g * 4 * steps + (s * in_group + b - g) * 4;
        for (int k = 0; k < 4; ++k) {
          float* const to = out + b * hybrid::block + 4 * s + k;
          if constexpr (format == hybrid::q4_0) {
            to[0] = static_cast<float>((word[k] & 15) - 8) * scale[0];
            to[16] = static_cast<float>((word[k] >> 4) - 8) * scale[0];
          } else {
            to[0] = static_cast<float>(static_cast<int8_t>(word[k])) * scale[0];
          }
        }
      }
    }
  }
}

template <class Simd, Format format>
void narrow(const float* x, int64_t n, void* out) {
  if constexpr (format == hybrid::f32) {
    memcpy(out, x, n * sizeof(float));
  } else {
    uint16_t* const to = static_cast<uint16_t*>(out);
    int64_t i = 0;
    if constexpr (format == hybrid::f16)
      for (; i + Simd::lanes <= n; i += Simd::lanes) Simd::store_halves(to + i, Simd::load(x + i));
    for (; i < n; ++i) to[i] = format == hybrid::bf16 ? to_bf16(x[i]) : to_f16(x[i]);
  }
}

}  // namespace
