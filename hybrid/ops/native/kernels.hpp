// The operators' inner loops, one table of them per instruction set. Included by files that are compiled with different
// flags, so it declares plain data and functions only: an inline function here could be merged across instruction sets.
#pragma once

#include <stdint.h>

namespace hybrid {

constexpr int max_tokens = 16;       // tokens of one call; a set of tokens is a 16-bit mask
constexpr int max_chunk_rows = 240;  // rows whose products are formed in one go
constexpr int block = 32;            // weights that share a scale in block formats
constexpr int group_blocks = 16;     // blocks whose words lie side by side, so that a lane of a vector is a block
constexpr int page_tokens = 16;      // keys of one page of the KV cache
constexpr int max_span = 128;        // keys and query heads whose attention one task computes at most
constexpr int max_heads = 32;
constexpr int unit_columns = 64;     // columns of 16-bit formats that one thread sums at least

// Weights, and the elements of KV pages (16 bits or f32). A vector of n weights in a block format is its quants, then
// its n / 32 half-precision scales; q8_0 and q4_0 are numerically the blocks of ggml. b1 has one bit for each weight, plus or
// minus the scale, and is for matrices of linear operators alone.
enum Format : int { bf16 = 0, f16 = 1, q8_0 = 2, q4_0 = 3, b1 = 4, f32 = 5 };
// relu2 is the square of relu, gelu_tanh approximates gelu; drelu is relu of the gate times relu of the up projection.
enum Activation : int { relu = 0, silu = 1, relu2 = 2, gelu = 3, gelu_tanh = 4, drelu = 5 };
constexpr int weight_formats = 4;  // of rows and tables; matrices have one more
constexpr int matrix_formats = 5;
constexpr int formats = 6;

// Of internal linkage, as all that is defined here.
static constexpr bool in_blocks(Format format) { return format == q8_0 || format == q4_0 || format == b1; }
static constexpr int words_per_block(Format format) { return format == b1 ? 1 : format == q4_0 ? 4 : 8; }  // of 32 bits
static constexpr int64_t element_bytes(Format format) { return format == f32 ? 4 : 2; }   // of formats without blocks
static constexpr int64_t quant_bytes(Format format, int64_t n) { return n / block * 4 * words_per_block(format); }
// Bytes of a vector of n weights.
static constexpr int64_t vector_bytes(Format format, int64_t n) {
  return in_blocks(format) ? quant_bytes(format, n) + n / block * 2 : n * element_bytes(format);
}
static constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a matrix or rows are multiplied with. Block formats need the values rounded to 8 bits as well, block by block:
// codes in the order of the weights' words, and for each block its scale and the sum of its codes.
struct Input {
  const float* x;         // [tokens, width]
  int64_t width;
  int tokens;
  const int8_t* codes;    // [tokens, width]
  const float* scales;    // [tokens, width / 32]
  const int32_t* sums;    // [tokens, width / 32]
};

struct LinearCall {
  const unsigned char* weight;  // [out_features, in.width], rows stride_bytes apart
  int64_t stride_bytes;
  int64_t out_features;
  const float* bias;  // [out_features] or null
  Input in;
  float* y;  // [tokens, out_features]
};

// One sparse feed-forward call. A row is [gate | up | down] or [up | down], each a vector of `in.width` weights.
struct FfnCall {
  const unsigned char* rows;  // records, stride_bytes apart
  int64_t stride_bytes;
  int64_t vector_bytes;
  bool gated;
  Activation activation;
  float cutoff;  // activations of at most this magnitude count as zero
  bool skip_inactive;
  const float* bias;  // one for each record, or null
  Input in;
};

struct Counts {
  int64_t gated;     // pairs of token and row whose first projection was computed
  int64_t finished;  // pairs whose activation was not skipped: with a gate, the up projection was computed as well
};

// Rows that have something to add for some token: which, for which tokens, and the factor of each token's sum.
struct Active {
  int32_t* rows;
  uint16_t* sets;
  float* values;  // [rows, tokens]; zero where the token is not in the set
};

// Attention of the step's tokens over one layer's pages [block, kv_head, page_tokens, head_dim].
struct AttentionCall {
  const float* q;  // [tokens, heads, head_dim]
  const void* keys;
  const void* values;
  int64_t heads, kv_heads, head_dim;
  int64_t window;                // keys that a query sees at most; 0 is all
  const int64_t* positions;      // [tokens]
  const int64_t* const* blocks;  // [tokens]: the block table of each token's sequence
};

// The query heads first_head..last_head-1 (at most max_heads) of one token, over keys first..last-1 of its sequence (at
// most max_span).
struct AttentionTask {
  int token;
  int64_t first_head, last_head;
  int64_t first, last;
};

struct Kernels {
  const char* name;
  // Fills codes, scales and sums for one token.
  void (*round_to_blocks)(const float* x, int64_t width, int8_t* codes, float* scales, int32_t* sums);
  // Writes outputs first..last-1 of every token.
  void (*linear_rows[matrix_formats])(const LinearCall& call, int64_t first, int64_t last);
  // Forms the products of `count` rows (at most max_chunk_rows) for the tokens of their sets; `later` more follow and come
  // next. Returns how many are active; those are written, perhaps over the `count` read.
  int64_t (*ffn_rows[weight_formats])(const FfnCall& call, const int32_t* rows, const uint16_t* sets, int64_t count,
                                      int64_t later, Active active, Counts* counts);
  // y [tokens, width] = sum over `count` active rows of value * down vector, in column units first..last-1.
  void (*ffn_columns[weight_formats])(const FfnCall& call, Active active, int64_t count, int64_t first, int64_t last,
                                      float* y);
  // The dequantised vector of n weights.
  void (*widen[formats])(const unsigned char* weights, int64_t n, float* out);
  // Writes for each head of the task [head_dim] weighted values, their greatest score, and the sum of their weights.
  void (*attend[formats])(const AttentionCall& call, const AttentionTask& task, float* partial);
  void (*narrow[formats])(const float* x, int64_t n, void* out);  // to the format of pages
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* y);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y);
  // Of each head the first `rotary` values, by [rotary / 2] angles.
  void (*rotate)(float* x, const float* cosines, const float* sines, int64_t heads, int64_t head_dim, int64_t rotary);
  void (*add)(const float* a, const float* b, int64_t n, float* y);
  // The place of the greatest value, the first of equals; -1 where a value is not finite.
  int64_t (*greatest)(const float* x, int64_t n);
};

// Null where the compiler's target has no such instructions.
const Kernels* portable_kernels();
const Kernels* neon_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512_kernels();

// Parts of a vector's columns that different threads may sum.
int64_t column_units(Format format, int64_t n);

}  // namespace hybrid
