// Linear and sparse feed-forward: each table against the portable one, and each token alone against the batch.
#include <algorithm>
#include <vector>

#include "operators.hpp"
#include "weights.hpp"

namespace check {
namespace {

using hybrid::Active;
using hybrid::Counts;
using hybrid::FfnCall;
using hybrid::LinearCall;
using hybrid::max_tokens;

void check_linear(const Kernels& table, const Kernels& portable, Format format, int64_t width, int tokens,
                  Random& random) {
  const int64_t outputs = 1 + random.below(9);
  context(table.name, ' ', name(format), ": linear, ", width, " to ", outputs, ", ", tokens, " tokens");
  const Batch batch(random, portable, format, width, tokens);
  const Rows w = random_rows(random, format, width, 1, outputs);
  const Guarded<float> bias = random_floats(random, outputs), y(tokens * outputs), z(tokens * outputs);
  const float* const some_bias = random.chance(0.5) ? bias.get() : nullptr;
  LinearCall call = {w.bytes.get(), w.stride_bytes, outputs, some_bias, batch.all(), y.get()};
  table.linear_rows[format](call, 0, outputs);
  call.y = z.get();
  portable.linear_rows[format](call, 0, outputs);
  close("y", y.get(), z.get(), tokens * outputs, batch.usual());

  const Guarded<float> cut(tokens * outputs);
  const int64_t at = random.below(outputs + 1);
  call.y = cut.get();
  if (at > 0) table.linear_rows[format](call, 0, at);
  if (at < outputs) table.linear_rows[format](call, at, outputs);
  same_bits("y in two ranges", cut.get(), y.get(), y.size() * sizeof(float));
  for (int t = 0; t < tokens; ++t) {
    const Guarded<float> alone(outputs);
    call.in = batch.one(t), call.y = alone.get();
    table.linear_rows[format](call, 0, outputs);
    same_bits("y of a token alone", alone.get(), y.get() + t * outputs, outputs * sizeof(float));
  }
}

// Named rows or active ones, with their memory.
struct Named {
  std::vector<int32_t> rows;
  std::vector<uint16_t> sets;
  std::vector<float> values;  // [rows, tokens]
  int64_t size() const { return static_cast<int64_t>(rows.size()); }
  Active active() { return {rows.data(), sets.data(), values.data()}; }

  Named of(int token, int tokens) const {
    Named one;
    for (int64_t i = 0; i < size(); ++i) {
      if (!(sets[i] >> token & 1)) continue;
      one.rows.push_back(rows[i]), one.sets.push_back(1);
      one.values.push_back(values.empty() ? 0 : values[i * tokens + token]);
    }
    return one;
  }
};

Named random_names(Random& random, int64_t n_rows, int tokens) {
  Named named;
  const double rows = random.chance(0.5) ? 1 : 0.4, tokens_of_row = random.chance(0.4) ? 1 : random.unit();
  for (int64_t r = 0; r < n_rows; ++r) {
    if (!random.chance(rows)) continue;
    uint16_t set = static_cast<uint16_t>(1u << random.below(tokens));
    for (int t = 0; t < tokens; ++t) set |= static_cast<uint16_t>(random.chance(tokens_of_row) << t);
    named.rows.push_back(static_cast<int32_t>(r)), named.sets.push_back(set);
  }
  return named;
}

Named products(const Kernels& table, Format format, const FfnCall& call, const Named& named, Counts* counts) {
  Named active = {std::vector<int32_t>(named.size()), std::vector<uint16_t>(named.size()),
                  std::vector<float>(named.size() * call.in.tokens)};
  const int64_t size = table.ffn_rows[format](call, named.rows.data(), named.sets.data(), named.size(), 0,
                                              active.active(), counts);
  active.rows.resize(size), active.sets.resize(size), active.values.resize(size * call.in.tokens);
  return active;
}

void check_ffn(const Kernels& table, const Kernels& portable, Format format, int64_t width, int64_t n_rows,
               Random& random) {
  const int tokens = random.chance(0.3) ? 1 : 1 + static_cast<int>(random.below(max_tokens));
  const bool gated = random.chance(0.5);
  context(table.name, ' ', name(format), ": sparse ffn, ", n_rows, " rows of ", width, ", ", tokens, " tokens, ",
          gated ? "gated" : "without a gate");
  const Batch batch(random, portable, format, width, tokens);
  const Rows w = random_rows(random, format, width, gated ? 3 : 2, n_rows);
  const Guarded<float> bias = random_floats(random, n_rows);
  FfnCall call = {w.bytes.get(), w.stride_bytes, hybrid::vector_bytes(format, width), gated,
                  static_cast<hybrid::Activation>(random.below(hybrid::drelu + gated)),
                  random.chance(0.5) ? static_cast<float>(random.unit()) * batch.usual() : 0, random.chance(0.8),
                  !gated && random.chance(0.7) ? bias.get() : nullptr, batch.all()};
  const Named named = random_names(random, n_rows, tokens);
  Counts counts = {0, 0}, expected = {0, 0};
  Named active = products(table, format, call, named, &counts);
  Named wanted = products(portable, format, call, named, &expected);
  same("pairs computed", counts.gated, expected.gated);
  same("pairs finished", counts.finished, expected.finished);
  same("active rows", active.size(), wanted.size());
  if (active.size() != wanted.size()) return;
  same_bits("rows", active.rows.data(), wanted.rows.data(), active.size() * sizeof(int32_t));
  same_bits("sets", active.sets.data(), wanted.sets.data(), active.size() * sizeof(uint16_t));
  const float usual = batch.usual(), activation = call.activation == hybrid::relu2 ? usual * usual : usual;
  close("values", active.values.data(), wanted.values.data(), active.size() * tokens,
        gated ? activation * usual : activation);

  const int64_t units = hybrid::column_units(format, width);
  const Guarded<float> y(tokens * width), z(tokens * width), cut(tokens * width);
  table.ffn_columns[format](call, wanted.active(), wanted.size(), 0, units, y.get());
  portable.ffn_columns[format](call, wanted.active(), wanted.size(), 0, units, z.get());
  close("y", y.get(), z.get(), tokens * width);
  for (int64_t first = 0; first < units;) {
    const int64_t last = std::min(units, first + 1 + random.below(units));
    table.ffn_columns[format](call, wanted.active(), wanted.size(), first, last, cut.get());
    first = last;
  }
  same_bits("y in ranges of columns", cut.get(), y.get(), y.size() * sizeof(float));

  for (int t = 0; t < tokens; ++t) {
    call.in = batch.one(t);
    Named one = products(table, format, call, named.of(t, tokens), &counts), same_one = active.of(t, tokens);
    same("active rows of a token alone", one.size(), same_one.size());
    if (one.size() != same_one.size()) continue;
    same_bits("values of a token alone", one.values.data(), same_one.values.data(), one.size() * sizeof(float));
    const Guarded<float> alone(width);
    Named its = wanted.of(t, tokens);
    table.ffn_columns[format](call, its.active(), its.size(), 0, units, alone.get());
    same_bits("y of a token alone", alone.get(), y.get() + t * width, width * sizeof(float));
  }
}

}  // namespace

void check_products(const Kernels& table, const Kernels& portable) {
  Random random(2);
  for (const int64_t width : widths(hybrid::b1))
    for (int tokens = 1; tokens <= max_tokens; ++tokens) check_linear(table, portable, hybrid::b1, width, tokens, random);
  for (const Format format : weight_formats) {
    for (const int64_t width : widths(format)) {
      for (int tokens = 1; tokens <= max_tokens; ++tokens) check_linear(table, portable, format, width, tokens, random);
      for (int i = 0; i < 4; ++i) check_ffn(table, portable, format, width, 1 + random.below(40), random);
    }
    check_ffn(table, portable, format, 96, hybrid::max_chunk_rows, random);
    check_ffn(table, portable, format, 544, hybrid::max_chunk_rows, random);
  }
}

void check_sparse_ffn_operator(const char* isa) {
  Random random(3);
  const Kernels& portable = *hybrid::portable_kernels();
  hybrid::Workspace workspace;
  hybrid::Pool one(1), three(3);
  for (const Format format : weight_formats) {
    const int64_t hidden = 608, n_rows = 700;
    const int tokens = 5;
    context(isa, ' ', name(format), ": operator sparse_ffn");
    const Rows w = random_rows(random, format, hidden, 3, n_rows);
    const Batch batch(random, portable, format, hidden, tokens);
    const Guarded<uint8_t> named(tokens * n_rows);
    for (int64_t i = 0; i < named.size(); ++i) named[i] = random.chance(0.3);
    const hybrid::Bank bank = {w.bytes.get(), w.stride_bytes, n_rows, hidden, format,
                               true,          hybrid::relu,   0,      true,   nullptr};
    const Guarded<float> y(tokens * hidden), shared(tokens * hidden), alone(tokens * hidden);
    const float* const x = batch.all().x;
    hybrid::Team team(one), team_of_three(three);
    sparse_ffn(team, workspace, bank, x, tokens, named.get(), n_rows, y.get());
    sparse_ffn(team_of_three, workspace, bank, x, tokens, named.get(), n_rows, shared.get());
    same_bits("y with three threads", shared.get(), y.get(), y.size() * sizeof(float));
    for (int t = 0; t < tokens; ++t)
      sparse_ffn(team, workspace, bank, x + t * hidden, 1, named.get() + t * n_rows, n_rows, alone.get() + t * hidden);
    same_bits("y of tokens alone", alone.get(), y.get(), y.size() * sizeof(float));

    const Guarded<float> vectors(3 * hidden);  // in double precision, from the widened rows
    std::vector<double> sums(tokens * hidden);
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int p = 0; p < 3; ++p)
        portable.widen[format](w.bytes.get() + r * w.stride_bytes + p * hybrid::vector_bytes(format, hidden), hidden,
                               vectors.get() + p * hidden);
      for (int t = 0; t < tokens; ++t) {
        if (!named[t * n_rows + r]) continue;
        double gate = 0, up = 0;
        for (int64_t j = 0; j < hidden; ++j) {
          gate += static_cast<double>(vectors[j]) * x[t * hidden + j];
          up += static_cast<double>(vectors[hidden + j]) * x[t * hidden + j];
        }
        for (int64_t j = 0; j < hidden && gate > 0; ++j) sums[t * hidden + j] += gate * up * vectors[2 * hidden + j];
      }
    }
    const Guarded<float> expected(tokens * hidden);
    std::copy(sums.begin(), sums.end(), expected.get());
    // Inputs of block formats were rounded to 8 bits.
    close("y", y.get(), expected.get(), y.size(), 0, in_blocks(format) ? 0.03f : 3e-5f);
  }
}

}  // namespace check
