#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "watch.hpp"

namespace hybrid {
namespace {

// The low half of a claim counts what is left of a job, the high half is its number.
constexpr int job_shift = 32;
constexpr uint64_t count_mask = (uint64_t{1} << job_shift) - 1;
constexpr int claims_per_thread = 16;  // about; the more there are, the less one slow thread delays the end

}  // namespace

// Tasks are claimed by lowering the count in `claim`. Only while a job's number stands there and its count is above zero
// can anything be claimed, so a worker that comes late takes nothing and nobody ever waits for a sleeper.
//
// The description of the job is read and written with relaxed order. A worker reads `claim` (acquire) before it and
// changes `claim` after it; if that succeeds, the description was the job's own: not an earlier one, because storing the
// job into `claim` (release) came after writing it and the changes of others continue that release; and not a later one,
// because the caller writes that only after `finished` told it (release, acquire) of the tasks just claimed.
struct Pool::State {
  // One line: what a watching worker needs comes with the line whose change it notices.
  alignas(64) std::atomic<uint64_t> claim{0};
  std::atomic<Function> function{nullptr};
  std::atomic<const void*> context{nullptr};
  std::atomic<uint64_t> tasks{0};

  alignas(64) std::atomic<uint64_t> finished{0};  // by workers, of all jobs; a job's caller counts its own tasks

  alignas(64) std::atomic<int> sleepers{0};  // changes seldom, so that the caller has it at hand
  std::atomic<bool> stopping{false};
  const uint64_t share;  // one claim takes so small a part of what is left
  const unsigned generation = forks();

  alignas(64) std::mutex turn;
  uint64_t expected = 0;  // of `finished`, when the last job ended
  std::exception_ptr failure;

  std::mutex failure_lock;
  std::mutex sleep;
  std::condition_variable wake;
  std::vector<std::thread> workers;

  State(int threads, const Cores& cores) : share(uint64_t{claims_per_thread} * threads) {
    const SignalsBlocked blocked;
    workers.reserve(threads - 1);
    try {
      for (int i = 1; i < threads; ++i) {
        workers.emplace_back([this] { work(); });
        pin(workers.back(), cores);
      }
    } catch (...) {
      stop();
      throw;
    }
  }

  ~State() { stop(); }

  void stop() {
    stopping.store(true, std::memory_order_relaxed);
    publish(0);
    for (std::thread& worker : workers) worker.join();
  }

  // Shows the next job's number, with what is left to claim of it, and wakes who sleeps. Both sides put the store before
  // the load in the one order of sequentially consistent operations: either the sleeper sees the job, or it is seen.
  uint64_t publish(uint64_t left) {
    const uint64_t job = ((claim.load(std::memory_order_relaxed) >> job_shift) + 1) & count_mask;
    claim.store(job << job_shift | left, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) > 0) {
      { const std::lock_guard<std::mutex> lock(sleep); }
      wake.notify_all();
    }
    return job;
  }

  void work() {
    uint64_t seen = 0;
    const auto news = [&] { return claim.load(std::memory_order_acquire) >> job_shift != seen; };
    for (;;) {
      if (!watch(watch_time, news)) {
        std::unique_lock<std::mutex> lock(sleep);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] { return claim.load(std::memory_order_seq_cst) >> job_shift != seen; });
        sleepers.fetch_sub(1, std::memory_order_relaxed);
      }
      seen = claim.load(std::memory_order_acquire) >> job_shift;
      if (stopping.load(std::memory_order_relaxed)) return;
      if (const uint64_t ran = take_part(seen)) finished.fetch_add(ran, std::memory_order_release);
    }
  }

  // What one claim takes of so many tasks: a few while many are left, in the end one.
  uint64_t portion(uint64_t left) const { return std::max<uint64_t>(left / share, 1); }

  // Runs what it can claim of a job; returns how many tasks that was.
  uint64_t take_part(uint64_t job) {
    uint64_t ran = 0, now = claim.load(std::memory_order_acquire);
    while (now >> job_shift == job && (now & count_mask) > 0) {
      const Function call = function.load(std::memory_order_relaxed);
      const void* const with = context.load(std::memory_order_relaxed);
      const uint64_t first = tasks.load(std::memory_order_relaxed) - (now & count_mask);
      const uint64_t count = portion(now & count_mask);
      if (!claim.compare_exchange_weak(now, now - count, std::memory_order_acquire)) continue;
      run_tasks(call, with, first, count);
      ran += count;
      now = claim.load(std::memory_order_acquire);
    }
    return ran;
  }

  void run_tasks(Function call, const void* with, uint64_t first, uint64_t count) {
    for (uint64_t task = first; task < first + count; ++task) {
      try {
        call(with, static_cast<int64_t>(task));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failure_lock);
        if (!failure) failure = std::current_exception();
      }
    }
  }
};

Pool::Pool(int threads, double slowdown, Cores cores)
    : threads_(threads), slowdown_(slowdown), cores_(std::move(cores)), state_(new State(threads, cores_)) {}

Pool::~Pool() { rest(); }

void Pool::rest() {
  State* const state = state_.exchange(nullptr, std::memory_order_acq_rel);
  if (state && state->generation == forks()) delete state;  // else its threads are the parent's
}

// In a child the threads are the parent's, and a lock may be held by one of them for ever: all of it is left behind.
// No lock here, for the same reason.
Pool::State& Pool::revive() {
  State* state = state_.load(std::memory_order_acquire);
  if (state && state->generation == forks()) return *state;
  State* const fresh = new State(threads_, cores_);
  if (state_.compare_exchange_strong(state, fresh, std::memory_order_acq_rel, std::memory_order_acquire)) return *fresh;
  delete fresh;  // another thread was first
  return *state;
}

Clock::time_point Pool::linger(Clock::time_point began, Clock::time_point ended, Interrupt* interrupt) {
  if (slowdown_ == 1) return ended;
  const auto worked = ended - began;
  const auto now = wait_until(ended + std::chrono::ceil<Clock::duration>((slowdown_ - 1) * worked), interrupt);
  const auto add = [](std::atomic<double>& sum, Clock::duration more) {  // one writer at a time: who has the turn
    sum.store(sum.load(std::memory_order_relaxed) + std::chrono::duration<double>(more).count(),
              std::memory_order_relaxed);
  };
  add(worked_, worked);
  add(waited_, now - ended);
  waits_.store(waits_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  return now;
}

Pool::Turn::Turn(Pool& pool) : state_(pool.revive()), lock_(state_.turn) {}

void Pool::Turn::run(int64_t tasks, Function function, const void* context) {
  if (state_.workers.empty() || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) function(context, task);
    return;
  }
  assert(static_cast<uint64_t>(tasks) <= count_mask);
  state_.function.store(function, std::memory_order_relaxed);
  state_.context.store(context, std::memory_order_relaxed);
  state_.tasks.store(tasks, std::memory_order_relaxed);
  const uint64_t first = state_.portion(tasks);  // the caller's own before anybody can claim, which saves it a claim
  const uint64_t job = state_.publish(tasks - first);
  state_.run_tasks(function, context, 0, first);
  state_.expected += tasks - first - state_.take_part(job);
  const auto ended = [&] { return state_.finished.load(std::memory_order_acquire) == state_.expected; };
  while (!watch(watch_time, ended)) std::this_thread::yield();
  if (state_.failure) std::rethrow_exception(std::exchange(state_.failure, nullptr));
}

}  // namespace hybrid
