#include "operators.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch.hpp"

namespace hybrid {
namespace {

constexpr int64_t least_rows_named = 1024;
constexpr int64_t cached_bytes = 256 << 10;  // of records whose parts are multiplied one after the other
constexpr int64_t least_attention_tasks = 4;  // for each thread
constexpr int64_t least_bytes = 16 << 10;  // of weights in one task: long enough to pay for claiming it

// Items cut into tasks that become smaller: long runs, which memory likes, first, and at the end threads wait for one
// another only as long as the smallest task takes, however unequal they are. No result depends on the cuts.
class Cuts {
 public:
  Cuts(int64_t items, int64_t least, int threads) {
    for (int64_t at = 0; at < items;) {
      const int64_t rest = items - at, share = divide_up(rest, 2 * threads);
      at += count_ + 1 < most ? std::min(std::max(divide_up(share, group) * group, least), rest) : rest;
      ends_[count_++] = at;
    }
  }
  int64_t count() const { return count_; }
  int64_t first(int64_t task) const { return task ? ends_[task - 1] : 0; }
  int64_t last(int64_t task) const { return ends_[task]; }

 private:
  static constexpr int most = 256;
  static constexpr int64_t group = 4;  // named rows are multiplied in fours
  int count_ = 0;
  int64_t ends_[most];
};

int64_t least_rows(int64_t bytes) { return std::max<int64_t>(divide_up(least_bytes, 4 * bytes) * 4, 4); }

LinearCall linear_call(const Matrix& m, const Input& in) {
  return {m.weight, m.stride_bytes, m.out_features, m.bias, in, m.y};
}

// Rows that some token names, and for which tokens; all rows where `named` is null. Eight rows at a time: the bytes of a
// token, each 0 or 1, become one bit of each row's set.
int64_t collect(const uint8_t* named, int64_t stride, int tokens, int64_t n_rows, int32_t* rows, uint16_t* sets) {
  int64_t count = 0;
  for (int64_t first = 0; first < n_rows; first += 8) {
    const int64_t some = std::min<int64_t>(8, n_rows - first);
    uint64_t low = 0, high = 0;  // tokens 0 to 7, and the others
    for (int t = 0; named && t < tokens; ++t) {
      uint64_t eight = 0;
      if (some == 8) std::memcpy(&eight, named + t * stride + first, 8);
      else std::memcpy(&eight, named + t * stride + first, some);
      (t < 8 ? low : high) |= eight << t % 8;
    }
    for (int64_t r = 0; r < some; ++r) {
      const uint64_t set = (low >> 8 * r & 0xff) | (high >> 8 * r & 0xff) << 8;
      rows[count] = static_cast<int32_t>(first + r);
      sets[count] = static_cast<uint16_t>(named ? set : (1u << tokens) - 1);
      count += sets[count] != 0;
    }
  }
  return count;
}

// Active rows lie in rising order: a bucket's are counted before they are added.
void count(const Tally& tally, const int32_t* rows, const uint16_t* sets, int64_t active, int tokens) {
  for (int64_t i = 0; i < active;) {
    const int64_t bucket = (tally.first + rows[i]) >> tally.shift, end = ((bucket + 1) << tally.shift) - tally.first;
    int64_t pairs = 0;
    for (; i < active && rows[i] < end; ++i) pairs += tokens == 1 ? 1 : __builtin_popcount(sets[i]);
    tally.counts[bucket] += pairs;
  }
}

// The reverse: bytes [tokens, stride] of rows first..last-1 from the sets of their neurons.
void spread(const uint16_t* sets, const int32_t* neuron_ids, int tokens, int64_t first, int64_t last, uint8_t* named,
            int64_t stride) {
  constexpr uint64_t ones = 0x0101010101010101;
  for (; first < last; first += 8) {
    const int64_t some = std::min<int64_t>(8, last - first);
    uint64_t low = 0, high = 0;
    for (int64_t r = 0; r < some; ++r) {
      const uint64_t set = sets[neuron_ids[first + r]];
      low |= (set & 0xff) << 8 * r, high |= set >> 8 << 8 * r;
    }
    for (int t = 0; t < tokens; ++t) {
      const uint64_t eight = (t < 8 ? low : high) >> t % 8 & ones;
      if (some == 8) std::memcpy(named + t * stride + first, &eight, 8);
      else std::memcpy(named + t * stride + first, &eight, some);
    }
  }
}

// Of outputs first..last-1 the tokens whose logit is above the threshold.
void above(const float* logits, int64_t stride, int tokens, float threshold, int64_t first, int64_t last, uint16_t* sets) {
  std::fill(sets + first, sets + last, uint16_t{0});
  for (int t = 0; t < tokens; ++t) {
    const float* const from = logits + t * stride;
    for (int64_t o = first; o < last; ++o) sets[o] |= static_cast<uint16_t>((from[o] > threshold) << t);
  }
}

}  // namespace

int64_t column_units(Format format, int64_t n) {
  if (!in_blocks(format)) return divide_up(n, unit_columns);
  return divide_up(n / block, group_blocks) * words_per_block(format);
}

Input make_input(Team& team, Workspace& workspace, const float* x, int64_t width, int tokens, bool rounded) {
  if (!rounded) return {x, width, tokens, nullptr, nullptr, nullptr};
  const int64_t blocks = width / block;
  int8_t* codes = workspace.get<int8_t>(Workspace::codes, tokens * width);
  float* scales = workspace.get<float>(Workspace::scales, tokens * blocks);
  int32_t* sums = workspace.get<int32_t>(Workspace::sums, tokens * blocks);
  team.by_tokens(tokens, [&](int64_t t) {
    kernels().round_to_blocks(x + t * width, width, codes + t * width, scales + t * blocks, sums + t * blocks);
  });
  return {x, width, tokens, codes, scales, sums};
}

void linear(Team& team, Workspace& workspace, const float* x, int64_t width, int tokens, const Matrix* matrices,
            int count) {
  const bool rounded = std::any_of(matrices, matrices + count, [](const Matrix& m) { return in_blocks(m.format); });
  const Input in = make_input(team, workspace, x, width, tokens, rounded);
  int64_t outputs = 0;
  for (int m = 0; m < count; ++m) outputs += matrices[m].out_features;
  const Cuts cuts(outputs, least_rows(matrices[0].stride_bytes), team.threads());
  team.run(cuts.count(), [&](int64_t task) {
    int64_t before = 0;  // outputs of the matrices that come before
    for (const Matrix* m = matrices; m < matrices + count; before += m++->out_features) {
      const int64_t first = std::max<int64_t>(cuts.first(task) - before, 0);
      const int64_t last = std::min(cuts.last(task) - before, m->out_features);
      if (first < last) kernels().linear_rows[m->format](linear_call(*m, in), first, last);
    }
  });
}

Counts sparse_ffn(Team& team, Workspace& workspace, const Bank& bank, const float* x, int tokens,
                  const uint8_t* named, int64_t named_stride, float* y, Shown shown, Tally tally) {
  using W = Workspace;
  const Input in = make_input(team, workspace, x, bank.hidden, tokens, in_blocks(bank.format));
  const FfnCall call = {bank.rows,       bank.stride_bytes, vector_bytes(bank.format, bank.hidden), bank.gated,
                        bank.activation, bank.cutoff,       bank.skip_inactive,                     bank.bias,
                        in};
  int32_t* rows = workspace.get<int32_t>(W::rows, bank.n_rows);
  uint16_t* sets = workspace.get<uint16_t>(W::sets, bank.n_rows);
  float* values = workspace.get<float>(W::values, bank.n_rows * tokens);
  const int64_t size = collect(named, named_stride, tokens, bank.n_rows, rows, sets);

  // Each task writes its active rows over its own named ones; then they are moved together. Every product and every
  // sum below is of one row or one column alone, so that the cuts change no result.
  const Cuts cuts(size, least_rows(bank.stride_bytes), team.threads());
  const int64_t cached_rows = std::clamp<int64_t>(cached_bytes / bank.stride_bytes / 4 * 4, 8, max_chunk_rows);
  const int64_t rows_at_once = tokens == 1 ? cached_rows : max_chunk_rows;
  struct Part {
    int64_t active;
    Counts counts;
  };
  Part* parts = workspace.get<Part>(W::counts, cuts.count());
  team.run(cuts.count(), [&](int64_t task) {
    Part part = {0, {0, 0}};
    for (int64_t at = cuts.first(task), to = at; at < cuts.last(task); at += rows_at_once) {
      const int64_t some = std::min(rows_at_once, cuts.last(task) - at);
      const int64_t n = kernels().ffn_rows[bank.format](call, rows + at, sets + at, some, cuts.last(task) - at - some,
                                                        {rows + to, sets + to, values + to * tokens}, &part.counts);
      part.active += n;
      to += n;
    }
    parts[task] = part;
  });
  Counts total = {0, 0};
  int64_t active = 0;
  for (int64_t task = 0; task < cuts.count(); ++task) {
    const int64_t first = cuts.first(task), n = parts[task].active;
    if (first != active) {
      std::memmove(rows + active, rows + first, n * sizeof *rows);
      std::memmove(sets + active, sets + first, n * sizeof *sets);
      std::memmove(values + active * tokens, values + first * tokens, n * tokens * sizeof *values);
    }
    active += n;
    total.gated += parts[task].counts.gated;
    total.finished += parts[task].counts.finished;
  }

  if (shown.activations) {
    team.run(tokens, [&](int64_t t) {
      float* out = shown.activations + t * shown.stride;
      std::fill(out, out + bank.n_rows, 0.0f);
      for (int64_t i = 0; i < active; ++i) out[rows[i]] = values[i * tokens + t];
    });
  }

  if (tally.counts) count(tally, rows, sets, active, tokens);

  const int64_t units = column_units(bank.format, bank.hidden);
  const int64_t per_task = std::max<int64_t>(units / (2 * team.threads()), 1);
  team.run(divide_up(units, per_task), [&](int64_t task) {
    const int64_t first = task * per_task, last = std::min(first + per_task, units);
    kernels().ffn_columns[bank.format](call, {rows, sets, values}, active, first, last, y);
  });
  return total;
}

void predict(Team& team, Workspace& workspace, const Predictor& predictor, const float* x, int64_t hidden,
             int tokens, uint8_t* named) {
  const int64_t rows = predictor.fc2.out_features;
  float* logits = workspace.get<float>(Workspace::logits, tokens * rows);
  Matrix first = predictor.fc1, second = predictor.fc2;
  second.y = logits;
  if (first.weight) {
    const int64_t rank = first.out_features;
    float* middle = first.y = workspace.get<float>(Workspace::hidden, tokens * rank);
    linear(team, workspace, x, hidden, tokens, &first, 1);
    if (predictor.rectified)
      for (int64_t i = 0; i < tokens * rank; ++i) middle[i] = middle[i] <= 0 ? 0 : middle[i];  // a NaN stays one
    x = middle, hidden = rank;
  }
  const Input in = make_input(team, workspace, x, hidden, tokens, in_blocks(second.format));
  const Cuts cuts(rows, least_rows(second.stride_bytes), team.threads());
  uint16_t* sets = workspace.get<uint16_t>(Workspace::sets, rows);  // of neurons: a thread reads little of what others wrote
  team.run(cuts.count(), [&](int64_t task) {
    const int64_t begin = cuts.first(task), end = cuts.last(task);
    kernels().linear_rows[second.format](linear_call(second, in), begin, end);
    above(logits, rows, tokens, predictor.threshold, begin, end, sets);
  });
  // By rows, so that no two threads write into the same cache line.
  const Cuts row_cuts(rows, least_rows_named, team.threads());
  team.run(row_cuts.count(), [&](int64_t task) {
    spread(sets, predictor.neuron_ids, tokens, row_cuts.first(task), row_cuts.last(task), named, rows);
  });
}

void attention(Team& team, Workspace& workspace, const AttentionCall& call, Format format, int tokens, float* y) {
  const int64_t size = call.head_dim + 2;
  // Spans begin at multiples of their length, whatever else is in the batch: so a token's bits are its own.
  const auto first_key = [&](int t) {
    return call.window ? std::max<int64_t>(call.positions[t] - call.window + 1, 0) : 0;
  };
  const auto spans = [&](int t) { return divide_up(call.positions[t] + 1, max_span) - first_key(t) / max_span; };
  int64_t most = 0, all = 0;
  for (int t = 0; t < tokens; ++t) most = std::max(most, spans(t)), all += spans(t);
  // All heads of a page lie side by side: as many in one task as leave work for all threads.
  const int64_t shared = call.heads / call.kv_heads, wanted = divide_up(least_attention_tasks * team.threads(), all);
  const int64_t together = std::min<int64_t>(divide_up(call.kv_heads, wanted) * shared, max_heads);
  const int64_t groups = divide_up(call.heads, together);
  float* partials = workspace.get<float>(Workspace::partials, tokens * most * call.heads * size);  // [token, span, head]
  team.run(tokens * most * groups, [&](int64_t task) {
    const int t = static_cast<int>(task / (most * groups));
    const int64_t span = task / groups % most, head = task % groups * together;
    if (span >= spans(t)) return;
    const int64_t begin = (first_key(t) / max_span + span) * max_span;
    kernels().attend[format](call,
                             {t, head, std::min(head + together, call.heads), std::max(begin, first_key(t)),
                              std::min(begin + max_span, call.positions[t] + 1)},
                             partials + ((t * most + span) * call.heads + head) * size);
  });
  // The spans' results joined: each has weights that hold against the greatest score of its own keys.
  const int64_t heads_per_task = divide_up(tokens * call.heads, 2 * team.threads());
  team.run(divide_up(tokens * call.heads, heads_per_task), [&](int64_t task) {
    for (int64_t i = task * heads_per_task; i < std::min((task + 1) * heads_per_task, tokens * call.heads); ++i) {
      const int64_t t = i / call.heads, n = spans(static_cast<int>(t)), stride = call.heads * size;
      const float* first = partials + (t * most * call.heads + i % call.heads) * size;
      float greatest = first[call.head_dim], sum = 0;
      for (int64_t s = 1; s < n; ++s) greatest = std::max(greatest, first[s * stride + call.head_dim]);
      float* out = y + i * call.head_dim;
      std::fill(out, out + call.head_dim, 0.0f);
      for (int64_t s = 0; s < n; ++s) {
        const float* p = first + s * stride;
        const float weight = std::exp(p[call.head_dim] - greatest);
        sum += weight * p[call.head_dim + 1];
        for (int64_t j = 0; j < call.head_dim; ++j) out[j] += weight * p[j];
      }
      for (int64_t j = 0; j < call.head_dim; ++j) out[j] /= sum;
    }
  });
}

}  // namespace hybrid
