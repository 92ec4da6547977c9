// Attention of a token over pages of keys and values, as templates over a SIMD type and the format of pages.
#pragma once

#include <math.h>
#include <string.h>

#include "dot_impl.hpp"

namespace {

using hybrid::AttentionCall;
using hybrid::AttentionTask;
using hybrid::max_heads;
using hybrid::max_span;
using hybrid::page_tokens;

constexpr int pieces_ahead = 2;  // of one head in one page: how far before their use they are asked for

// e^v to about 2 units in the last place, for v <= 0: 2^n times a polynomial (Cephes, expf). Below -87 it is 0.
template <class Simd>
inline typename Simd::V exponential(typename Simd::V v) {
  using V = typename Simd::V;
  v = Simd::max(Simd::broadcast(-87.0f), v);  // in this order a NaN stays one
  const V n = Simd::round(Simd::mul(v, Simd::broadcast(1.44269504088896341f)));
  V r = Simd::fma(n, Simd::broadcast(-0.693359375f), v);
  r = Simd::fma(n, Simd::broadcast(2.12194440e-4f), r);
  V p = Simd::broadcast(1.9875691500e-4f);
  constexpr float others[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  for (float c : others) p = Simd::fma(p, r, Simd::broadcast(c));
  p = Simd::fma(p, Simd::mul(r, r), Simd::add(r, Simd::broadcast(1.0f)));
  return Simd::times_power_of_two(p, n);
}

// Weights of n scores, in place: e^(score - greatest). Returns their sum; the greatest score goes to `greatest`.
template <class Simd>
inline float soften(float* scores, int64_t n, float* greatest) {
  typename Simd::V mosts = Simd::broadcast(scores[0]);
  int64_t whole = 0;
  for (; whole + Simd::lanes <= n; whole += Simd::lanes) mosts = Simd::max(mosts, Simd::load(scores + whole));
  float most = Simd::greatest(mosts);
  for (; whole < n; ++whole) most = scores[whole] > most ? scores[whole] : most;
  typename Simd::V sum = Simd::zero();
  const typename Simd::V less = Simd::broadcast(-most);
  for (int64_t i = 0; i < n; i += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, n - i);
    Simd::store(scores + i, exponential<Simd>(Simd::add(Simd::load(scores + i, rest), less)), rest);
    sum = Simd::add(sum, Simd::load(scores + i, rest));
  }
  *greatest = most;
  return Simd::sum(sum);
}

// Walks over the keys of some query heads in the order in which they lie in memory: page by page, all heads of a page.
// visit(head, shared, vectors, key, count, ahead): `shared` query heads from `head` on have `count` vectors from `key` on
// in this page; the vectors at `ahead` come later, and processors do not look for them by themselves: pages lie anywhere.
template <Format format, class Visit>
inline void each_page(const void* pages, const AttentionCall& call, const AttentionTask& task, const Visit& visit) {
  const int64_t shared = call.heads / call.kv_heads, vector = call.head_dim * element_bytes(format);
  const int64_t first_head = task.first_head / shared, heads = (task.last_head - 1) / shared + 1 - first_head;
  const int64_t first_page = task.first / page_tokens, n_pages = (task.last - 1) / page_tokens + 1 - first_page;
  const auto vectors = [&](int64_t piece) {
    const int64_t page = call.blocks[task.token][first_page + piece / heads] * call.kv_heads + first_head + piece % heads;
    return static_cast<Bytes>(pages) + page * page_tokens * vector;
  };
  for (int64_t piece = 0; piece < n_pages * heads; ++piece) {
    const int64_t page = (first_page + piece / heads) * page_tokens, kv_head = first_head + piece % heads;
    const int64_t key = greater(page, task.first), count = smaller(page + page_tokens, task.last) - key;
    const int64_t head = greater(kv_head * shared, task.first_head);
    visit(head, smaller((kv_head + 1) * shared, task.last_head) - head, vectors(piece) + (key - page) * vector, key, count,
          vectors(smaller(piece + pieces_ahead, n_pages * heads - 1)));
  }
}

// Calls body(H, head) with H = 4, 2 or 1 heads at a time.
template <class Body>
inline void by_heads(int64_t count, const Body& body) {
  int64_t h = 0;
  for (; h + 4 <= count; h += 4) body(std::integral_constant<int, 4>(), h);
  if (h + 2 <= count) body(std::integral_constant<int, 2>(), h), h += 2;
  if (h < count) body(std::integral_constant<int, 1>(), h);
}

// scores[h][i] = q_h . key_i, scaled, of `count` keys for H query heads; four products at a time, so that their sums over
// a vector's lanes are formed together.
template <class Simd, Format format, int H>
inline void score(const float* q, int64_t head_dim, float scale, Bytes keys, int64_t count, Bytes ahead,
                  float (*scores)[max_span], int64_t at) {
  constexpr int K = 4 / H;
  const int64_t vector = head_dim * element_bytes(format);
  for (int64_t i = 0; i < count; i += K) {
    typename Simd::V sums[4];
    for (int s = 0; s < 4; ++s) sums[s] = Simd::zero();
    Bytes k[K];
    for (int r = 0; r < K; ++r) k[r] = keys + smaller(i + r, count - 1) * vector;
    for (int64_t b = 0; b < K * vector; b += line) __builtin_prefetch(ahead + i * vector + b);
    for (int64_t j = 0; j < head_dim; j += Simd::lanes) {
      const int64_t rest = smaller(Simd::lanes, head_dim - j);
      const bool whole = rest == Simd::lanes;
      typename Simd::V x[H];
      for (int h = 0; h < H; ++h)
        x[h] = whole ? Simd::load(q + h * head_dim + j) : Simd::load(q + h * head_dim + j, rest);
      for (int r = 0; r < K; ++r) {
        const Bytes from = k[r] + j * element_bytes(format);
        const typename Simd::V wide =
            whole ? Simd::template widen<format>(from) : Simd::template widen<format>(from, rest);
        for (int h = 0; h < H; ++h) sums[r * H + h] = Simd::fma(wide, x[h], sums[r * H + h]);
      }
    }
    float products[4];
    Simd::sum4(sums, products);
    for (int r = 0; r < K && i + r < count; ++r)
      for (int h = 0; h < H; ++h) scores[h][at + i + r] = products[r * H + h] * scale;
  }
}

// out[h] += sum over `count` value vectors of weight * vector, for H query heads.
template <class Simd, Format format, int H>
inline void mix(const float (*weights)[max_span], int64_t at, int64_t head_dim, Bytes values, int64_t count, Bytes ahead,
                float* out, int64_t out_stride) {
  constexpr int columns = Simd::lanes < 16 && H > 1 ? 2 : 4;  // vectors of each head whose sums registers hold
  const int64_t vector = head_dim * element_bytes(format);
  for (int64_t b = 0; b < count * vector; b += line) __builtin_prefetch(ahead + b);
  int64_t j = 0;
  for (; j + columns * Simd::lanes <= head_dim; j += columns * Simd::lanes) {
    typename Simd::V sums[H][columns];
    for (int h = 0; h < H; ++h)
      for (int c = 0; c < columns; ++c) sums[h][c] = Simd::load(out + h * out_stride + j + c * Simd::lanes);
    for (int64_t i = 0; i < count; ++i) {
      typename Simd::V wide[columns];
      for (int c = 0; c < columns; ++c)
        wide[c] = Simd::template widen<format>(values + i * vector + (j + c * Simd::lanes) * element_bytes(format));
      for (int h = 0; h < H; ++h) {
        const typename Simd::V weight = Simd::broadcast(weights[h][at + i]);
        for (int c = 0; c < columns; ++c) sums[h][c] = Simd::fma(wide[c], weight, sums[h][c]);
      }
    }
    for (int h = 0; h < H; ++h)
      for (int c = 0; c < columns; ++c) Simd::store(out + h * out_stride + j + c * Simd::lanes, sums[h][c]);
  }
  for (; j < head_dim; j += Simd::lanes) {
    const int64_t rest = smaller(Simd::lanes, head_dim - j);
    for (int h = 0; h < H; ++h) {
      typename Simd::V sum = Simd::load(out + h * out_stride + j, rest);
      for (int64_t i = 0; i < count; ++i)
        sum = Simd::fma(Simd::template widen<format>(values + i * vector + j * element_bytes(format), rest),
                        Simd::broadcast(weights[h][at + i]), sum);
      Simd::store(out + h * out_stride + j, sum, rest);
    }
  }
}

template <class Simd, Format format>
void attend(const AttentionCall& call, const AttentionTask& task, float* partial) {
  float scores[max_heads][max_span];
  const int64_t head_dim = call.head_dim, stride = head_dim + 2;
  const float* q = call.q + task.token * call.heads * head_dim;
  const float scale = 1.0f / sqrtf(static_cast<float>(head_dim));
  each_page<format>(call.keys, call, task, [&](int64_t head, int64_t n, Bytes keys, int64_t key, int64_t count, Bytes ahead) {
    by_heads(n, [&](auto H, int64_t h) {
      score<Simd, format, H>(q + (head + h) * head_dim, head_dim, scale, keys, count, ahead,
                             scores + head + h - task.first_head, key - task.first);
    });
  });
  for (int64_t h = 0; h < task.last_head - task.first_head; ++h) {
    float *const out = partial + h * stride, *const tail = out + head_dim;
    tail[1] = soften<Simd>(scores[h], task.last - task.first, tail);
    memset(out, 0, head_dim * sizeof(float));
  }
  each_page<format>(call.values, call, task, [&](int64_t head, int64_t n, Bytes values, int64_t key, int64_t count, Bytes ahead) {
    by_heads(n, [&](auto H, int64_t h) {
      const int64_t at = head + h - task.first_head;
      mix<Simd, format, H>(scores + at, key - task.first, head_dim, values, count, ahead, partial + at * stride, stride);
    });
  });
}

}  // namespace
