// A count that one thread raises and another waits for, in a microsecond where both are at it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "watch.hpp"

namespace hybrid {

class Signal {
 public:
  // Counts one more. Who waited for it sees everything that was written before.
  void notify() {
    count_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    { const std::lock_guard<std::mutex> lock(sleep_); }
    wake_.notify_all();
  }

  // Returns once `times` were counted in all: watches at first, and sleeps when that takes long.
  void wait(uint64_t times) {
    if (watch(watch_time, [&] { return counted(times); })) return;
    Sleeper sleeper(*this);
    wake_.wait(sleeper.lock, [&] { return counted(times); });
  }

  // As `wait`, but at most about `limit`; returns whether they were counted.
  bool wait(uint64_t times, std::chrono::duration<double> limit) {
    if (watch(watch_time, [&] { return counted(times); })) return true;
    Sleeper sleeper(*this);
    return wake_.wait_for(sleeper.lock, limit, [&] { return counted(times); });
  }

 private:
  // Either the sleeper sees the count, or whoever counts sees the sleeper: both store before they load, in the one order
  // of sequentially consistent operations.
  bool counted(uint64_t times) const { return count_.load(std::memory_order_seq_cst) >= times; }

  struct Sleeper {
    explicit Sleeper(Signal& of) : signal(of), lock(of.sleep_) { signal.sleepers_.fetch_add(1, std::memory_order_seq_cst); }
    ~Sleeper() { signal.sleepers_.fetch_sub(1, std::memory_order_relaxed); }
    Signal& signal;
    std::unique_lock<std::mutex> lock;
  };

  std::atomic<uint64_t> count_{0};
  std::atomic<int> sleepers_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
};

}  // namespace hybrid
