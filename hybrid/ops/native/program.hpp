// A decode step, recorded once as a list of operators over fixed buffers and run with one call for each step.
#pragma once

#include <functional>
#include <list>
#include <vector>

#include "operators.hpp"

namespace hybrid {

// What changes from step to step.
struct Step {
  int tokens;
  const int64_t* ids;            // [tokens]
  const int64_t* positions;      // [tokens]
  const int64_t* const* blocks;  // [tokens]: the block table of each token's sequence
};

struct Table {  // of vectors: embeddings, learned positions
  const unsigned char* weight;
  int64_t stride_bytes;
  Format format;
  int64_t width;
};

struct NormCall {
  bool centred;  // layer norm; otherwise by root mean square
  const float* x;
  const float* weight;
  const float* bias;
  int64_t width;
  int64_t vectors;  // of a token, one after the other, each normalised by itself
  float eps;
  float* y;  // may be x
};

struct Pages {
  void* keys;
  void* values;
  Format format;
  int64_t kv_heads, head_dim;
};

// Every buffer is [max_tokens, ...] floats and belongs to the caller, as do the weights; both outlive the program.
class Program {
 public:
  void embed(const Table& table, float* y);
  void add_positions(const Table& table, int64_t offset, float* y);
  // Cosines and sines of each token's rotary angles, [tokens, half] each, from `half` frequencies.
  void angles(const float* frequencies, int64_t half, float* cosines, float* sines);
  void norm(const NormCall& call);
  void linear(Pool& pool, const float* x, int64_t width, std::vector<Matrix> matrices);
  void rotate(float* x, int64_t heads, int64_t head_dim, int64_t rotary, const float* cosines, const float* sines);
  void store(const float* k, const float* v, const Pages& pages);
  void attention(Pool& pool, const float* q, const Pages& pages, int64_t heads, int64_t window, float* y);
  void add(const float* a, const float* b, int64_t width, float* y);        // a and y [tokens, width]
  void add_vector(const float* vector, int64_t width, float* y);            // the same vector to every token
  void predict(Pool& pool, const Predictor& predictor, const float* x, int64_t hidden, uint8_t* named);
  // The first of a layer's banks writes y, the others add to it. `counts` [2] is added to.
  void sparse_ffn(Pool& pool, const Bank& bank, const float* x, const uint8_t* named, int64_t named_stride, bool more,
                  float* y, int64_t* counts, Shown shown = {});

  void run(const Step& step);

  enum Kind { embeddings, norms, positions, linears, pages, attentions, sums, predictors, feed_forwards, kinds };
  static const char* name(Kind kind);
  double seconds(Kind kind) const { return seconds_[kind]; }  // that operators of this kind took in all runs

 private:
  struct Operator {
    Kind kind;
    std::function<void(const Step&)> run;
  };
  Team& team(Pool& pool);  // during a run

  std::vector<Operator> operators_;
  std::vector<Pool*> pools_;
  std::list<Team> teams_;  // one for each pool, while it runs
  double seconds_[kinds] = {};
  Workspace workspace_;
};

}  // namespace hybrid
