// Attention over pages: the kernels against the portable ones, the operator against a sum in double precision.
#include <algorithm>
#include <cmath>
#include <vector>

#include "operators.hpp"
#include "weights.hpp"

namespace check {
namespace {

using hybrid::AttentionCall;
using hybrid::AttentionTask;
using hybrid::max_heads;
using hybrid::max_span;
using hybrid::page_tokens;

constexpr Format page_formats[] = {hybrid::bf16, hybrid::f16, hybrid::f32};

// The keys and values of some sequences, each with its block table in a random order. What is not stored is NaN.
class Cache {
 public:
  Cache(Random& random, const Kernels& portable, Format format, int64_t kv_heads, int64_t head_dim,
        const std::vector<int64_t>& lengths, int64_t first = 0)
      : format_(format), kv_heads_(kv_heads), head_dim_(head_dim) {
    std::vector<int64_t> free;
    for (const int64_t length : lengths)
      for (int64_t b = 0; b * page_tokens < length; ++b) free.push_back(static_cast<int64_t>(free.size()));
    for (size_t i = free.size(); i > 1; --i) std::swap(free[i - 1], free[random.below(i)]);
    const int64_t vector = hybrid::vector_bytes(format, head_dim);
    for (Guarded<unsigned char>& pages : pages_) {
      pages = Guarded<unsigned char>(static_cast<int64_t>(free.size()) * kv_heads * page_tokens * vector);
      auto next = free.begin();
      tables_.clear();
      for (const int64_t length : lengths) {
        const int64_t blocks = (length + page_tokens - 1) / page_tokens;
        tables_.emplace_back(next, next + blocks);
        next += blocks;
        for (int64_t key = first; key < length; ++key)
          for (int64_t h = 0; h < kv_heads; ++h)
            portable.narrow[format](random_floats(random, head_dim).get(), head_dim,
                                    pages.get() + place(tables_.back(), h, key) * vector);
      }
    }
    for (const std::vector<int64_t>& table : tables_) pointers_.push_back(table.data());
  }

  AttentionCall call(const float* q, int64_t heads, int64_t window, const int64_t* positions, int token = 0) const {
    return {q,         pages_[0].get(), pages_[1].get(), heads,
            kv_heads_, head_dim_,       window,          positions,
            pointers_.data() + token};
  }

  // A key (0) or value (1) vector as floats.
  std::vector<float> vector(const Kernels& portable, int which, int sequence, int64_t kv_head, int64_t key) const {
    std::vector<float> wide(head_dim_);
    const int64_t at = place(tables_[sequence], kv_head, key) * hybrid::vector_bytes(format_, head_dim_);
    portable.widen[format_](pages_[which].get() + at, head_dim_, wide.data());
    return wide;
  }

 private:
  int64_t place(const std::vector<int64_t>& table, int64_t kv_head, int64_t key) const {
    return (table[key / page_tokens] * kv_heads_ + kv_head) * page_tokens + key % page_tokens;
  }

  Format format_;
  int64_t kv_heads_, head_dim_;
  Guarded<unsigned char> pages_[2] = {Guarded<unsigned char>(0), Guarded<unsigned char>(0)};
  std::vector<std::vector<int64_t>> tables_;
  std::vector<const int64_t*> pointers_;
};

void check_attend(const Kernels& table, const Kernels& portable, Format format, int64_t head_dim, Random& random) {
  const int64_t shared = 1 + random.below(9), kv_heads = 1 + random.below(3), heads = shared * kv_heads;
  const int64_t length = random.chance(0.2) ? 1 + random.below(900) : 1 + random.below(80);
  const int64_t first = std::max<int64_t>(random.below(length), length - max_span);
  context(table.name, ' ', name(format), ": attend, keys ", first, " to ", length, ", head_dim ", head_dim, ", ", heads,
          " heads, ", kv_heads, " kv heads");
  const Cache cache(random, portable, format, kv_heads, head_dim, {length}, first);
  const float scale = random.chance(0.3) ? 60 : 2;  // 60: weights that vanish
  const Guarded<float> q = random_floats(random, heads * head_dim, scale);
  const int64_t position = length - 1, size = head_dim + 2;
  const Guarded<float> partial(max_heads * size), expected(max_heads * size);
  const AttentionCall call = cache.call(q.get(), heads, 0, &position);
  const int64_t first_head = random.below(heads), last_head = std::min(heads, first_head + 1 + random.below(max_heads));
  const AttentionTask task = {0, first_head, last_head, first, length};
  table.attend[format](call, task, partial.get());
  portable.attend[format](call, task, expected.get());
  for (int64_t i = 0; i < last_head - first_head; ++i) {
    const float *a = partial.get() + i * size, *b = expected.get() + i * size;
    close("values", a, b, head_dim);
    close("greatest score", a + head_dim, b + head_dim, 1, scale);  // products of this size may cancel
    close("sum of weights", a + head_dim + 1, b + head_dim + 1, 1);
  }
}

// softmax(q K^T / sqrt(head_dim)) V of one token and head over keys first..position (Vaswani et al., 2017).
void attend_exactly(const Cache& cache, const Kernels& portable, int sequence, int64_t kv_head, const float* q,
                    int64_t head_dim, int64_t first, int64_t position, float* out) {
  std::vector<double> scores, sums(head_dim);
  for (int64_t key = first; key <= position; ++key) {
    const std::vector<float> k = cache.vector(portable, 0, sequence, kv_head, key);
    double score = 0;
    for (int64_t j = 0; j < head_dim; ++j) score += static_cast<double>(q[j]) * k[j];
    scores.push_back(score / std::sqrt(static_cast<double>(head_dim)));
  }
  const double greatest = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (int64_t key = first; key <= position; ++key) {
    const double weight = std::exp(scores[key - first] - greatest);
    const std::vector<float> v = cache.vector(portable, 1, sequence, kv_head, key);
    total += weight;
    for (int64_t j = 0; j < head_dim; ++j) sums[j] += weight * v[j];
  }
  for (int64_t j = 0; j < head_dim; ++j) out[j] = static_cast<float>(sums[j] / total);
}

}  // namespace

void check_attention(const Kernels& table, const Kernels& portable) {
  Random random(4);
  for (const Format format : page_formats)
    for (const int64_t head_dim : {1, 2, 3, 4, 5, 7, 8, 12, 16, 20, 33, 40, 63, 64, 80, 96, 128, 130})
      for (int i = 0; i < 6; ++i) check_attend(table, portable, format, head_dim, random);
}

void check_attention_operator(const char* isa) {
  Random random(5);
  const Kernels& portable = *hybrid::portable_kernels();
  hybrid::Workspace workspace;
  hybrid::Pool one(1), three(3);
  for (const Format format : page_formats) {
    for (const int64_t window : {0, 1, 7, 64, 512, 600}) {
      const int64_t kv_heads = 1 + random.below(2), shared = 1 + random.below(6), heads = kv_heads * shared;
      const int64_t head_dim = random.chance(0.5) ? 16 : 20;
      const std::vector<int64_t> lengths = {1, 2 + random.below(40), 512, 513, 600 + random.below(600)};
      const int tokens = static_cast<int>(lengths.size());
      context(isa, ' ', name(format), ": operator attention, window ", window, ", head_dim ", head_dim, ", ", heads,
              " heads, ", kv_heads, " kv heads");
      const Cache cache(random, portable, format, kv_heads, head_dim, lengths);
      std::vector<int64_t> positions;
      for (const int64_t length : lengths) positions.push_back(length - 1);
      const int64_t width = heads * head_dim;
      const Guarded<float> q = random_floats(random, tokens * width, 2);
      const Guarded<float> y(tokens * width), shared_y(tokens * width), alone(tokens * width), expected(tokens * width);
      hybrid::Team team(one), team_of_three(three);
      const AttentionCall call = cache.call(q.get(), heads, window, positions.data());
      attention(team, workspace, call, format, tokens, y.get());
      attention(team_of_three, workspace, call, format, tokens, shared_y.get());
      for (int t = 0; t < tokens; ++t) {
        const float* const its_q = q.get() + t * width;
        const AttentionCall its_call = cache.call(its_q, heads, window, &positions[t], t);
        attention(team, workspace, its_call, format, 1, alone.get() + t * width);
        const int64_t first = window ? std::max<int64_t>(positions[t] - window + 1, 0) : 0;
        for (int64_t h = 0; h < heads; ++h)
          attend_exactly(cache, portable, t, h / shared, its_q + h * head_dim, head_dim, first, positions[t],
                         expected.get() + t * width + h * head_dim);
        close("y", y.get() + t * width, expected.get() + t * width, width);
      }
      same_bits("y with three threads", shared_y.get(), y.get(), y.size() * sizeof(float));
      same_bits("y of tokens alone", alone.get(), y.get(), y.size() * sizeof(float));
    }
  }
}

}  // namespace check
