#include "program.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "dispatch.hpp"

namespace hybrid {

void Program::embed(const Table& table, float* y) {
  append(Kind::embeddings, unit_, [=](const Step& step) {
    for (int t = 0; t < step.tokens; ++t)
      kernels().widen[table.format](table.weight + step.ids[t] * table.stride_bytes, table.width, y + t * table.width);
  });
}

void Program::add_positions(const Table& table, int64_t offset, float* y) {
  append(Kind::embeddings, unit_, [=](const Step& step) {
    float* row = workspace_->get<float>(Workspace::other, table.width);
    for (int t = 0; t < step.tokens; ++t) {
      const unsigned char* from = table.weight + (step.positions[t] + offset) * table.stride_bytes;
      kernels().widen[table.format](from, table.width, row);
      kernels().add(y + t * table.width, row, table.width, y + t * table.width);
    }
  });
}

void Program::angles(const float* frequencies, int64_t half, float* cosines, float* sines) {
  append(Kind::positions, unit_, [=](const Step& step) {
    for (int t = 0; t < step.tokens; ++t)
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(step.positions[t]) * frequencies[i];
        cosines[t * half + i] = std::cos(angle);
        sines[t * half + i] = std::sin(angle);
      }
  });
}

void Program::norm(const NormCall& call) {
  append(Kind::norms, unit_, [this, call](const Step& step) {
    by_tokens(step, [&](int64_t t) {
      for (int64_t i = t * call.vectors; i < (t + 1) * call.vectors; ++i) {
        const float* x = call.x + i * call.width;
        float* y = call.y + i * call.width;
        if (call.centred) kernels().layer_norm(x, call.weight, call.bias, call.width, call.eps, y);
        else kernels().rms_norm(x, call.weight, call.width, call.eps, y);
      }
    });
  });
}

void Program::linear(Pool& pool, const float* x, int64_t width, std::vector<Matrix> matrices) {
  append(Kind::linears, &pool, [this, x, width, matrices = std::move(matrices)](const Step& step) {
    hybrid::linear(*team_, *workspace_, x, width, step.tokens, matrices.data(), static_cast<int>(matrices.size()));
  });
}

void Program::rotate(float* x, int64_t heads, int64_t head_dim, int64_t rotary, const float* cosines,
                     const float* sines) {
  append(Kind::positions, unit_, [=](const Step& step) {
    by_tokens(step, [&](int64_t t) {
      const int64_t at = t * (rotary / 2);
      kernels().rotate(x + t * heads * head_dim, cosines + at, sines + at, heads, head_dim, rotary);
    });
  });
}

void Program::store(const float* k, const float* v, const Pages& pages) {
  append(Kind::pages, unit_, [=](const Step& step) {
    const int64_t bytes = pages.head_dim * element_bytes(pages.format);
    by_tokens(step, [&](int64_t t) {
      for (int64_t h = 0; h < pages.kv_heads; ++h) {
        const int64_t position = step.positions[t], block = step.blocks[t][position / page_tokens];
        const int64_t at = ((block * pages.kv_heads + h) * page_tokens + position % page_tokens) * bytes;
        const int64_t from = (t * pages.kv_heads + h) * pages.head_dim;
        kernels().narrow[pages.format](k + from, pages.head_dim, static_cast<char*>(pages.keys) + at);
        kernels().narrow[pages.format](v + from, pages.head_dim, static_cast<char*>(pages.values) + at);
      }
    });
  });
}

void Program::attention(Pool& pool, const float* q, const Pages& pages, int64_t heads, int64_t window, float* y) {
  append(Kind::attentions, &pool, [=](const Step& step) {
    const AttentionCall call = {q,      pages.keys,     pages.values, heads, pages.kv_heads, pages.head_dim,
                                window, step.positions, step.blocks};
    hybrid::attention(*team_, *workspace_, call, pages.format, step.tokens, y);
  });
}

void Program::add(const float* a, const float* b, int64_t width, float* y) {
  append(Kind::sums, unit_, [=](const Step& step) {
    by_tokens(step, [&](int64_t t) { kernels().add(a + t * width, b + t * width, width, y + t * width); });
  });
}

void Program::add_vector(const float* vector, int64_t width, float* y) {
  append(Kind::sums, unit_, [=](const Step& step) {
    for (int t = 0; t < step.tokens; ++t) kernels().add(y + t * width, vector, width, y + t * width);
  });
}

void Program::predict(Pool& pool, const Predictor& predictor, const float* x, int64_t hidden, uint8_t* named) {
  append(Kind::predictors, &pool, [=](const Step& step) {
    hybrid::predict(*team_, *workspace_, predictor, x, hidden, step.tokens, named);
  });
}

void Program::sparse_ffn(Pool& pool, const Bank& bank, const float* x, const uint8_t* named, int64_t named_stride,
                         bool more, float* y, int64_t* counts, Shown shown, Tally tally) {
  append(Kind::feed_forwards, &pool, [=](const Step& step) {
    const int64_t size = step.tokens * bank.hidden;
    float* out = more ? workspace_->get<float>(Workspace::other, size) : y;
    const Counts found =
        hybrid::sparse_ffn(*team_, *workspace_, bank, x, step.tokens, named, named_stride, out, shown, tally);
    if (more) kernels().add(y, out, size, y);
    counts[0] += found.gated;
    counts[1] += found.finished;
  });
}

void Program::request(const NamedRows& rows, Lane* lane) {
  requests_.push_back(std::make_unique<Request>(rows));
  if (lane && std::find(helpers_.begin(), helpers_.end(), lane) == helpers_.end()) helpers_.push_back(lane);
  append(Kind::requests, unit_, [this, lane, &request = *requests_.back()](const Step& step) {
    if (!lane || lane->lost()) return request.run(step.tokens);
    lane->wait(interrupt_);
    lane->join();
    lane->submit([&request, &step](Workspace&, Seat&, Interrupt&) { request.run(step.tokens); });
  });
}

int64_t Program::requested() const {
  int64_t bytes = 0;
  for (const auto& request : requests_) bytes += request->asked();
  return bytes;
}

void Program::call(std::function<void()> function) {
  append(Kind::sums, unit_, [function = std::move(function)](const Step&) { function(); });
}

void Program::hand_over(Lane& lane, Program& far) {
  others_.push_back(&far);
  append(Kind::hand_overs, nullptr, [this, &lane, &far](const Step& step) {
    team_.reset();  // whatever is computed there finds its pool free
    lane.submit([&far, &step](Workspace& workspace, Seat& seat, Interrupt& stop) {
      far.run(step, workspace, seat, &stop);
    });
    away_ = Away{&lane, &far};
  });
}

void Program::wait(Lane& lane) {
  append(Kind::waits, nullptr, [this, &lane](const Step&) {
    team_.reset();
    if (!lane.lost()) lane.wait(interrupt_);
  });
}

void Program::join(Lane& lane) {
  append(Kind::waits, nullptr, [this, &lane](const Step&) {
    team_.reset();
    lane.wait(interrupt_);
    away_->joined = true;
    lane.join();
  });
}

const char* Program::name(Kind kind) {
  static constexpr const char* names[kinds] = {"embeddings", "norms",        "positions", "linear",
                                               "pages",      "attention",    "sums",      "predictors",
                                               "feed-forward", "requests",     "hand-over", "waiting"};
  return names[kind];
}

std::vector<Program::Note> Program::notes() const {
  std::vector<Note> notes;
  notes.reserve(noted_);
  for (std::size_t i = 0; i < noted_; ++i) {
    const Operator& op = operators_[i];
    notes.push_back({op.kind, op.layer, op.unit, times_[i].first, times_[i].second});
  }
  return notes;
}

double Program::Extent::seconds() const {
  return ended < began ? 0 : std::chrono::duration<double>(ended - began).count();
}

// An operator, while a layer's part is away.
void Program::count(Kind kind, Clock::time_point began, Clock::time_point ended) {
  if (kind == Kind::waits) away_->wait += std::chrono::duration<double>(ended - began).count();
  else if (kind != Kind::hand_overs) away_->near.add(began, ended);
  if (!away_->joined) return;
  const Extent &near = away_->near, &far = away_->far->computed_;
  const Extent both = {std::max(near.began, far.began), std::min(near.ended, far.ended)};
  overlap_.near += near.seconds();
  overlap_.far += far.seconds();
  overlap_.wait += away_->wait;
  overlap_.smaller += std::min(near.seconds(), far.seconds());
  overlap_.hidden += both.seconds();
  away_.reset();
}

void Program::run(const Step& step, Interrupt* interrupt) {
  Seat seat;
  run(step, own_workspace_, seat, interrupt);
}

void Program::run(const Step& step, Workspace& workspace, Seat& seat, Interrupt* interrupt) {
  struct Finish {  // whatever happens, nobody computes for this step any more
    Program& program;
    ~Finish() {
      program.team_.reset();
      if (program.away_ && !program.away_->joined) {
        program.away_->lane->stop();
        try {
          program.away_->lane->join();
        } catch (...) {  // what is on its way already came first
        }
      }
      program.away_.reset();
      for (Lane* lane : program.helpers_)
        if (!lane->lost()) lane->join();  // what a request reads may be gone after the run; it never throws
    }
  };
  away_.reset();  // in a child that was forked from the middle of a run there may be one
  const Finish finish{*this};
  workspace_ = &workspace;
  interrupt_ = interrupt;
  overlap_ = {};
  computed_ = {};
  noted_ = 0;
  if (noting_) times_.resize(operators_.size());
  for (Program* far : others_) far->noting_ = noting_, far->noted_ = 0;
  const Pool* at = nullptr;
  Clock::time_point began = Clock::now();
  for (const Operator& op : operators_) {
    if (op.pool && (op.pool != at || !team_)) {
      team_.reset();
      seat.take(op.pool->cores());
      team_.emplace(*op.pool);
      at = op.pool;
      began = Clock::now();  // waiting for others is nobody's work
    }
    op.run(step);
    Clock::time_point ended = Clock::now();
    if (op.pool) ended = op.pool->linger(began, ended, interrupt);
    if (interrupt) interrupt->look(ended);
    seconds_[op.kind] += std::chrono::duration<double>(ended - began).count();
    computed_.add(began, ended);
    if (noting_) times_[noted_++] = {began, ended};
    if (away_) count(op.kind, began, ended);
    began = ended;
  }
}

}  // namespace hybrid
