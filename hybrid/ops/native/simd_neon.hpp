// Vectors of four: arm64 with the dot product instructions.
#pragma once

#include <arm_neon.h>
#include <string.h>

#include "kernels.hpp"

namespace {

struct Simd {
  using V = float32x4_t;
  using I = int32x4_t;

  static constexpr int lanes = 4;
  static constexpr int rows_of_halves = 3, tokens_of_halves = 4;  // whose products are formed together
  static constexpr int rows_of_blocks = 2, tokens_of_blocks = 4;
  static constexpr int tokens_of_sums = 4, sums_held = 16;  // whose sums are formed together, in so many vectors
  static constexpr int signed_offset = 0;
  static constexpr bool whole_words = true;  // what dot_nibbles adds to, as it does
  static constexpr int nibble_offset = 8;
  static constexpr bool pairs_rows = false;  // short ones share a vector

  static V zero() { return vdupq_n_f32(0); }
  static V broadcast(float value) { return vdupq_n_f32(value); }
  static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  static V mul(V a, V b) { return vmulq_f32(a, b); }
  static V add(V a, V b) { return vaddq_f32(a, b); }
  static V max(V a, V b) { return vmaxq_f32(a, b); }
  static V abs(V v) { return vabsq_f32(v); }
  static V round(V v) { return vrndnq_f32(v); }
  static V times_power_of_two(V v, V n) {  // n is whole and above -127
    const I exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(v, vreinterpretq_f32_s32(exponent));
  }
  static float sum(V v) { return vaddv_f32(vadd_f32(vget_low_f32(v), vget_high_f32(v))); }
  // The sums of four vectors, each in the order of `sum`.
  static void sum4(const V (&v)[4], float* out) {
    vst1q_f32(out, vpaddq_f32(add_halves(v[0], v[1]), add_halves(v[2], v[3])));
  }
  static float greatest(V v) { return vmaxvq_f32(v); }

  static V load(const float* p) { return vld1q_f32(p); }
  static V load(const float* p, int64_t n) { return n == lanes ? vld1q_f32(p) : few<V>(p, n * sizeof(float)); }
  static void store(float* p, V v) { vst1q_f32(p, v); }
  static void store(float* p, V v, int64_t n) {
    if (n == lanes) vst1q_f32(p, v);
    else memcpy(p, &v, n * sizeof(float));
  }

  static void store_halves(uint16_t* p, V v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }

  template <hybrid::Format format>
  static V widen(const unsigned char* p) {
    if constexpr (format == hybrid::f32) return vreinterpretq_f32_u8(vld1q_u8(p));
    else return widen<format>(vreinterpret_u16_u8(vld1_u8(p)));
  }
  template <hybrid::Format format>
  static V widen(const unsigned char* p, int64_t n) {
    if (n == lanes) return widen<format>(p);
    if constexpr (format == hybrid::f32) return few<V>(p, n * sizeof(float));
    else return widen<format>(few<uint16x4_t>(p, n * sizeof(uint16_t)));
  }

  static I words(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
  static I half_words(const void* p) { return words(p, lanes / 2); }
  static I words(const void* p, int64_t n) { return n == lanes ? words(p) : few<I>(p, n * sizeof(int32_t)); }
  static I times(I a, int factor) { return vmulq_n_s32(a, factor); }
  static I low(I w) { return vandq_s32(w, vdupq_n_s32(0x0f0f0f0f)); }
  static I lowest_bits(I w) { return vandq_s32(w, vdupq_n_s32(0x01010101)); }  // of each byte
  static I next_bits(I w) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(w), 1)); }
  static I zero_words() { return vdupq_n_s32(0); }
  static I add_words(I a, I b) { return vaddq_s32(a, b); }
  static I high(I w) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(w), 4)); }
  static I as_signed(I w) { return w; }
  static I dot_signed(I sum, I w, I x) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
  }
  static I dot_nibbles(I sum, I w, I x) { return dot_signed(sum, w, x); }
  static I whole(I sum) { return sum; }
  static V to_float(I v) { return vcvtq_f32_s32(v); }
  static I to_int(V v) { return vcvtnq_s32_f32(v); }
  static void store_int(int32_t* p, I v) { vst1q_s32(p, v); }
  static V halves(const unsigned char* p, int64_t n) { return widen<hybrid::f16>(p, n); }
  // The conversion takes fixed-point numbers: what stands 4 k bits up need not be shifted down first.
  template <int k>
  static V nibble(I w) {
    const uint32x4_t masked = vandq_u32(vreinterpretq_u32_s32(w), vdupq_n_u32(15u << (4 * k)));
    if constexpr (k == 0) return vcvtq_f32_u32(masked);
    else return vcvtq_n_f32_u32(masked, 4 * k);
  }
  template <int k>
  static V signed_byte(I w) {
    if constexpr (k == 3) return vcvtq_f32_s32(vshrq_n_s32(w, 24));
    else return vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(w, 24 - 8 * k), 24));
  }

 private:
  static V add_halves(V a, V b) {
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
  }
  // The first `bytes` bytes of a vector at p, then zeros.
  template <class T>
  static T few(const void* p, int64_t bytes) {
    T v = {};
    memcpy(&v, p, bytes);
    return v;
  }
  template <hybrid::Format format>
  static V widen(uint16x4_t h) {
    if constexpr (format == hybrid::bf16) {  // zeros below each half: one instruction
      return vreinterpretq_f32_u16(vzip1q_u16(vdupq_n_u16(0), vcombine_u16(h, vdup_n_u16(0))));
    } else {
      return vcvt_f32_f16(vreinterpret_f16_u16(h));
    }
  }
};

}  // namespace
