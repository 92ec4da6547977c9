// A decode step, recorded once as a list of operators over fixed buffers and run with one call for each step.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lane.hpp"
#include "operators.hpp"
#include "prefetch.hpp"

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
  // Operators that need no pool belong, from here on, to this one's unit: they are computed on its cores, and as slowly.
  void computed_by(Pool& pool) { unit_ = &pool; }

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
                  float* y, int64_t* counts, Shown shown = {}, Tally tally = {});
  // Named rows that are not in memory are asked for (see Request): here, or on a lane's thread, where that was not lost.
  // Whoever asks the same lane again waits for the first, and a run ends after all of them.
  void request(const NamedRows& rows, Lane* lane);
  void call(std::function<void()> function);  // anything else, which may throw
  // Another program with the same step on the lane's thread, from here to the join; it outlives this one.
  void hand_over(Lane& lane, Program& far);
  void wait(Lane& lane);  // until what it was given is done: an other program, before the join, or a request
  void join(Lane& lane);

  // `interrupt`, if any, is asked between operators and while they wait. What it throws ends the run, and the other
  // program's. In the second form with another thread's memory, on cores that it keeps.
  void run(const Step& step, Interrupt* interrupt = nullptr);
  void run(const Step& step, Workspace& workspace, Seat& seat, Interrupt* interrupt = nullptr);

  enum Kind { embeddings, norms, positions, linears, pages, attentions, sums, predictors, feed_forwards, requests,
              hand_overs, waits, kinds };
  static const char* name(Kind kind);
  int64_t requested() const;  // bytes that all runs asked for
  double seconds(Kind kind) const { return seconds_[kind]; }  // that operators of this kind took in all runs

  // Seconds of the last run in layers that both programs have a part in: what operators took between hand-over and join,
  // of this program and of the other, how long this one waited, and, summed layer by layer, the smaller of both sides
  // and what of it was hidden: for so long the other side computed too.
  struct Overlap {
    double near = 0, far = 0, wait = 0, smaller = 0, hidden = 0;
  };
  const Overlap& overlap() const { return overlap_; }

  // When operators of the last run began and ended, if notes were wanted; `unit` is null where it is not known.
  struct Note {
    Kind kind;
    int64_t layer;
    Pool* unit;
    Clock::time_point began, ended;
  };
  void mark(int64_t layer) { layer_ = layer; }  // what is recorded from here on belongs to this layer; -1: to none
  void note(bool wanted) { noting_ = wanted; }  // in runs from now on, also of programs that are handed over
  std::vector<Note> notes() const;

 private:
  using Run = std::function<void(const Step&)>;
  struct Operator {
    Kind kind;
    int64_t layer;
    Pool* pool;  // that it takes a turn on: of the unit that it belongs to, if it is known
    Pool* unit;
    Run run;
  };
  struct Extent {  // of operators that follow one another
    Clock::time_point began = Clock::time_point::max(), ended = Clock::time_point::min();
    void add(Clock::time_point from, Clock::time_point to) { began = std::min(began, from), ended = to; }
    double seconds() const;
  };
  struct Away {  // a layer's part that was handed over
    Lane* lane;
    const Program* far;
    Extent near;
    double wait = 0;
    bool joined = false;
  };
  void append(Kind kind, Pool* pool, Run run) {
    operators_.push_back({kind, layer_, pool, pool ? pool : unit_, std::move(run)});
  }
  void count(Kind kind, Clock::time_point began, Clock::time_point ended);
  template <class Body>
  void by_tokens(const Step& step, const Body& body) {  // shared among the unit's threads, where the unit is known
    if (team_) return team_->by_tokens(step.tokens, body);
    for (int64_t t = 0; t < step.tokens; ++t) body(t);
  }

  std::vector<Operator> operators_;
  std::vector<Program*> others_;  // that are handed over
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Lane*> helpers_;  // that some of them are made on
  Pool* unit_ = nullptr;
  int64_t layer_ = -1;
  double seconds_[kinds] = {};
  Extent computed_;  // in the last run
  Overlap overlap_;
  bool noting_ = false;
  std::vector<std::pair<Clock::time_point, Clock::time_point>> times_;  // of the operators, one after the other
  std::size_t noted_ = 0;
  Workspace own_workspace_;

  // During a run:
  Workspace* workspace_ = nullptr;
  Interrupt* interrupt_ = nullptr;
  std::optional<Team> team_;  // of the unit whose operator runs
  std::optional<Away> away_;
};

}  // namespace hybrid
