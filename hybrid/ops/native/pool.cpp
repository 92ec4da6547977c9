#include "pool.hpp"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace hybrid {
namespace {

constexpr int spins = 2000;  // tens of microseconds: longer than the pause between two operators of a decode step

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::atomic<unsigned> forks{0};

unsigned fork_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });
  static_cast<void>(registered);
  return forks;
}

// Signals meant for the program go to its own threads; faults still reach the thread that caused them.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace

// Work is claimed by raising `claim`, which holds the job's number in its upper and the next task in its lower half. A
// worker that comes late finds another job's number there and takes nothing, so nobody ever waits for a sleeper.
struct State {
  using Function = void (*)(const void*, int64_t);

  std::mutex turn;
  std::atomic<uint64_t> claim{0};
  std::atomic<Function> function{nullptr};
  std::atomic<const void*> context{nullptr};
  std::atomic<int64_t> tasks{0};
  std::atomic<int64_t> done{0};

  std::mutex sleep;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};

  std::mutex failure_lock;
  std::exception_ptr failure;

  void* scratch = nullptr;
  std::size_t scratch_bytes = 0;
  std::vector<std::thread> workers;

  explicit State(int threads) {
    const SignalsBlocked blocked;
    try {
      for (int i = 1; i < threads; ++i) workers.emplace_back([this] { work(); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~State() {
    stop();
    ::operator delete(scratch, std::align_val_t{64});
  }

  void stop() {
    stopping = true;
    { const std::lock_guard<std::mutex> lock(sleep); }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
    workers.clear();
  }

  void work() {
    uint64_t seen = 0;
    while (wait_for_job(seen)) {
      seen = claim >> 32;
      take_part(seen);
    }
  }

  bool news(uint64_t seen) const { return stopping || claim >> 32 != seen; }

  bool wait_for_job(uint64_t seen) {
    for (int i = 0; i < spins && !news(seen); ++i) pause_briefly();
    if (!news(seen)) {
      std::unique_lock<std::mutex> lock(sleep);
      ++sleepers;
      wake.wait(lock, [&] { return news(seen); });
      --sleepers;
    }
    return !stopping;
  }

  void take_part(uint64_t job) {
    for (;;) {
      const Function call = function;
      const void* const with = context;
      const int64_t last = tasks;
      uint64_t now = claim;
      // Only while the job is the current one are the three values above its own.
      if (now >> 32 != job || static_cast<int64_t>(now & 0xffffffff) >= last) return;
      if (!claim.compare_exchange_weak(now, now + 1)) continue;
      try {
        call(with, static_cast<int64_t>(now & 0xffffffff));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failure_lock);
        if (!failure) failure = std::current_exception();
      }
      ++done;
    }
  }
};

Pool::Pool(int threads) : threads_(threads), generation_(fork_generation()), state_(new State(threads)) {}

Pool::~Pool() {
  if (generation_ != fork_generation()) static_cast<void>(state_.release());  // its threads are the parent's
}

State& Pool::revive() {
  const std::lock_guard<std::mutex> lock(revival_);
  if (generation_ != fork_generation()) {
    // The threads stayed with the parent, and a lock may be held by one of them for ever: leave it all behind.
    static_cast<void>(state_.release());
    state_.reset(new State(threads_));
    generation_ = fork_generation();
  }
  return *state_;
}

Pool::Turn::Turn(Pool& pool) : state_(pool.revive()), lock_(state_.turn) {}

void* Pool::Turn::scratch(std::size_t bytes) {
  if (bytes > state_.scratch_bytes) {
    ::operator delete(state_.scratch, std::align_val_t{64});
    state_.scratch = nullptr;
    state_.scratch_bytes = 0;
    state_.scratch = ::operator new(bytes, std::align_val_t{64});
    state_.scratch_bytes = bytes;
  }
  return state_.scratch;
}

void Pool::Turn::run(int64_t tasks, Function function, const void* context) {
  if (state_.workers.empty() || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) function(context, task);
    return;
  }
  const uint64_t last_job = state_.claim >> 32, job = (last_job + 1) & 0xffffffff;
  state_.claim = last_job << 32 | 0xffffffff;  // nothing is left to claim of the last job while the new one is set up
  state_.function = function;
  state_.context = context;
  state_.tasks = tasks;
  state_.done = 0;
  state_.claim = job << 32;
  if (state_.sleepers > 0) {
    { const std::lock_guard<std::mutex> lock(state_.sleep); }
    state_.wake.notify_all();
  }
  state_.take_part(job);
  for (int i = 0; state_.done < tasks; ++i) {
    if (i < spins) pause_briefly();
    else std::this_thread::yield();
  }
  if (std::exception_ptr failure = std::exchange(state_.failure, nullptr)) std::rethrow_exception(failure);
}

}  // namespace hybrid
