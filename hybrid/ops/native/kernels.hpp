// The operators' inner loops, one table of them per instruction set. Included by files that are compiled with different
// flags, so it declares plain data and functions only: an inline function here could be merged across instruction sets.
#pragma once

#include <stdint.h>

namespace hybrid {

constexpr int max_tokens = 16;       // tokens of one call; a set of tokens is a 16-bit mask
constexpr int max_chunk_rows = 512;  // rows whose partial sum is formed by one thread

enum WeightFormat : int { bf16 = 0, f16 = 1 };
enum Activation : int { relu = 0, silu = 1 };

// One sparse feed-forward call. A row is [gate | up | down] or [up | down], each of `hidden` 16-bit elements.
struct FfnCall {
  const unsigned char* rows;  // n_rows records, stride_bytes apart
  int64_t stride_bytes;
  int64_t n_rows;
  int64_t hidden;
  bool gated;
  Activation activation;
  bool skip_inactive;
  const float* bias;     // [n_rows] or null
  const float* x;        // [tokens, hidden]
  int tokens;
  const uint8_t* named;  // [tokens, n_rows], rows named_stride apart; null names every row
  int64_t named_stride;
};

struct LinearCall {
  const unsigned char* weight;  // [out_features, in_features], rows stride_bytes apart
  int64_t stride_bytes;
  int64_t out_features;
  int64_t in_features;
  const float* bias;  // [out_features] or null
  const float* x;     // [tokens, in_features]
  int tokens;
  float* y;           // [tokens, out_features]
};

struct Counts {
  int64_t gated;     // pairs of token and row whose first projection was computed
  int64_t finished;  // pairs whose other projections were computed as well
};

struct Kernels {
  const char* name;
  // Adds up rows first..last-1 (at most max_chunk_rows) into partial [tokens, hidden]. Returns the set of tokens whose
  // part of `partial` was written; the others' is left as it was. Indexed by WeightFormat.
  uint32_t (*ffn_chunk[2])(const FfnCall& call, int64_t first, int64_t last, float* partial, Counts* counts);
  // Writes outputs first..last-1 of every token.
  void (*linear_rows[2])(const LinearCall& call, int64_t first, int64_t last);
};

// Null where the compiler's target has no such instructions.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace hybrid
