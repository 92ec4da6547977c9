// The operators: how their work is cut up and shared among the threads of a pool. Callers checked the arguments.
#pragma once

#include "kernels.hpp"
#include "pool.hpp"
#include "workspace.hpp"

namespace hybrid {

// A caller's turn on a pool, for as many operators as it likes.
class Team {
 public:
  explicit Team(Pool& pool) : turn_(pool), threads_(pool.threads()) {}
  int threads() const { return threads_; }
  template <class Body>
  void run(int64_t tasks, const Body& body) { turn_.run(tasks, body); }
  // What is done to each token by itself: by one thread where that is over before another one notices.
  template <class Body>
  void by_tokens(int tokens, const Body& body) {
    if (tokens >= least_tokens_shared) return run(tokens, body);
    for (int64_t t = 0; t < tokens; ++t) body(t);
  }

 private:
  static constexpr int least_tokens_shared = 4;

  Pool::Turn turn_;
  int threads_;
};

// A matrix that a linear operator multiplies with, and where its outputs go.
struct Matrix {
  const unsigned char* weight;
  int64_t stride_bytes;
  int64_t out_features;
  Format format;
  const float* bias;
  float* y;  // [tokens, out_features]
};

// Rows [n_rows, stride_bytes] of a layer, or some of them.
struct Bank {
  const unsigned char* rows;
  int64_t stride_bytes;
  int64_t n_rows;
  int64_t hidden;
  Format format;
  bool gated;
  Activation activation;
  float cutoff;  // see FfnCall
  bool skip_inactive;
  const float* bias;
};

struct Predictor {
  Matrix fc1;      // [rank, hidden]; no weight where fc2 reads the state itself; no y is used
  bool rectified;  // negative numbers between the two become zero
  Matrix fc2;      // [rows, rank] in the order of neuron ids
  float threshold;
  const int32_t* neuron_ids;  // [rows]: the neuron of each row
};

// An input as operators need it, for block formats `rounded` to blocks as well.
Input make_input(Team& team, Workspace& workspace, const float* x, int64_t width, int tokens, bool rounded);

// All of `matrices` times the same input, in one parallel region.
void linear(Team& team, Workspace& workspace, const float* x, int64_t width, int tokens, const Matrix* matrices,
            int count);

// What multiplies the down vectors, [tokens, n_rows] with rows of tokens `stride` apart, for who wants to see it.
struct Shown {
  float* activations = nullptr;
  int64_t stride = 0;
};

// How often rows were added up, by buckets of 1 << shift rows of the layer, whose row `first` is the bank's first: every
// pair of token and row counts once. One thread adds to it at a time.
struct Tally {
  int64_t* counts = nullptr;
  int shift = 0;
  int64_t first = 0;
};

// y [tokens, hidden] = the bank's rows, summed; `named` [tokens, n_rows], null names every row.
Counts sparse_ffn(Team& team, Workspace& workspace, const Bank& bank, const float* x, int tokens,
                  const uint8_t* named, int64_t named_stride, float* y, Shown shown = {}, Tally tally = {});

// named [tokens, rows]: the rows whose logit is above the threshold.
void predict(Team& team, Workspace& workspace, const Predictor& predictor, const float* x, int64_t hidden,
             int tokens, uint8_t* named);

// y [tokens, heads, head_dim]: causal attention of each token over its sequence's keys.
void attention(Team& team, Workspace& workspace, const AttentionCall& call, Format format, int tokens, float* y);

}  // namespace hybrid
