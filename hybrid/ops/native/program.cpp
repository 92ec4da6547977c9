#include "program.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "dispatch.hpp"

namespace hybrid {

void Program::embed(const Table& table, float* y) {
  operators_.push_back({Kind::embeddings, [=](const Step& step) {
    for (int t = 0; t < step.tokens; ++t)
      kernels().widen[table.format](table.weight + step.ids[t] * table.stride_bytes, table.width, y + t * table.width);
  }});
}

void Program::add_positions(const Table& table, int64_t offset, float* y) {
  operators_.push_back({Kind::embeddings, [=](const Step& step) {
    float* row = workspace_.get<float>(Workspace::other, table.width);
    for (int t = 0; t < step.tokens; ++t) {
      const unsigned char* from = table.weight + (step.positions[t] + offset) * table.stride_bytes;
      kernels().widen[table.format](from, table.width, row);
      kernels().add(y + t * table.width, row, table.width, y + t * table.width);
    }
  }});
}

void Program::angles(const float* frequencies, int64_t half, float* cosines, float* sines) {
  operators_.push_back({Kind::positions, [=](const Step& step) {
    for (int t = 0; t < step.tokens; ++t)
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(step.positions[t]) * frequencies[i];
        cosines[t * half + i] = std::cos(angle);
        sines[t * half + i] = std::sin(angle);
      }
  }});
}

void Program::norm(const NormCall& call) {
  operators_.push_back({Kind::norms, [=](const Step& step) {
    for (int64_t i = 0; i < step.tokens * call.vectors; ++i) {
      const float* x = call.x + i * call.width;
      float* y = call.y + i * call.width;
      if (call.centred) kernels().layer_norm(x, call.weight, call.bias, call.width, call.eps, y);
      else kernels().rms_norm(x, call.weight, call.width, call.eps, y);
    }
  }});
}

void Program::linear(Pool& pool, const float* x, int64_t width, std::vector<Matrix> matrices) {
  pools_.push_back(&pool);
  operators_.push_back({Kind::linears, [this, &pool, x, width, matrices = std::move(matrices)](const Step& step) {
    hybrid::linear(team(pool), workspace_, x, width, step.tokens, matrices.data(), static_cast<int>(matrices.size()));
  }});
}

void Program::rotate(float* x, int64_t heads, int64_t head_dim, int64_t rotary, const float* cosines,
                     const float* sines) {
  operators_.push_back({Kind::positions, [=](const Step& step) {
    for (int t = 0; t < step.tokens; ++t) {
      const int64_t at = t * (rotary / 2);
      kernels().rotate(x + t * heads * head_dim, cosines + at, sines + at, heads, head_dim, rotary);
    }
  }});
}

void Program::store(const float* k, const float* v, const Pages& pages) {
  operators_.push_back({Kind::pages, [=](const Step& step) {
    const int64_t bytes = pages.head_dim * element_bytes(pages.format);
    for (int t = 0; t < step.tokens; ++t)
      for (int64_t h = 0; h < pages.kv_heads; ++h) {
        const int64_t position = step.positions[t], block = step.blocks[t][position / page_tokens];
        const int64_t at = ((block * pages.kv_heads + h) * page_tokens + position % page_tokens) * bytes;
        const int64_t from = (t * pages.kv_heads + h) * pages.head_dim;
        kernels().narrow[pages.format](k + from, pages.head_dim, static_cast<char*>(pages.keys) + at);
        kernels().narrow[pages.format](v + from, pages.head_dim, static_cast<char*>(pages.values) + at);
      }
  }});
}

void Program::attention(Pool& pool, const float* q, const Pages& pages, int64_t heads, int64_t window, float* y) {
  pools_.push_back(&pool);
  operators_.push_back({Kind::attentions, [=, &pool](const Step& step) {
    const AttentionCall call = {q,      pages.keys,     pages.values, heads, pages.kv_heads, pages.head_dim,
                                window, step.positions, step.blocks};
    hybrid::attention(team(pool), workspace_, call, pages.format, step.tokens, y);
  }});
}

void Program::add(const float* a, const float* b, int64_t width, float* y) {
  operators_.push_back({Kind::sums, [=](const Step& step) { kernels().add(a, b, step.tokens * width, y); }});
}

void Program::add_vector(const float* vector, int64_t width, float* y) {
  operators_.push_back({Kind::sums, [=](const Step& step) {
    for (int t = 0; t < step.tokens; ++t) kernels().add(y + t * width, vector, width, y + t * width);
  }});
}

void Program::predict(Pool& pool, const Predictor& predictor, const float* x, int64_t hidden, uint8_t* named) {
  pools_.push_back(&pool);
  operators_.push_back({Kind::predictors, [=, &pool](const Step& step) {
    hybrid::predict(team(pool), workspace_, predictor, x, hidden, step.tokens, named);
  }});
}

void Program::sparse_ffn(Pool& pool, const Bank& bank, const float* x, const uint8_t* named, int64_t named_stride,
                         bool more, float* y, int64_t* counts, Shown shown) {
  pools_.push_back(&pool);
  operators_.push_back({Kind::feed_forwards, [=, &pool](const Step& step) {
    const int64_t size = step.tokens * bank.hidden;
    float* out = more ? workspace_.get<float>(Workspace::other, size) : y;
    const Counts found =
        hybrid::sparse_ffn(team(pool), workspace_, bank, x, step.tokens, named, named_stride, out, shown);
    if (more) kernels().add(y, out, size, y);
    counts[0] += found.gated;
    counts[1] += found.finished;
  }});
}

const char* Program::name(Kind kind) {
  static constexpr const char* names[kinds] = {"embeddings", "norms",      "positions", "linear",      "pages",
                                               "attention",  "sums",  "predictors", "feed-forward"};
  return names[kind];
}

Team& Program::team(Pool& pool) {
  std::size_t at = 0;
  while (pools_[at] != &pool) ++at;
  return *std::next(teams_.begin(), static_cast<std::ptrdiff_t>(at));
}

void Program::run(const Step& step) {
  std::sort(pools_.begin(), pools_.end());  // one order for all programs, so that two that share pools never wait in a circle
  pools_.erase(std::unique(pools_.begin(), pools_.end()), pools_.end());
  teams_.clear();
  struct Release {
    std::list<Team>& teams;
    ~Release() { teams.clear(); }
  } release{teams_};
  for (Pool* pool : pools_) teams_.emplace_back(*pool);
  auto began = std::chrono::steady_clock::now();
  for (const Operator& op : operators_) {
    op.run(step);
    const auto ended = std::chrono::steady_clock::now();
    seconds_[op.kind] += std::chrono::duration<double>(ended - began).count();
    began = ended;
  }
}

}  // namespace hybrid
