// The host's part of steps whose other part a device computes: programs that the device's driver calls, each when its
// turn on a stream comes. A driver takes no exception and waits for every call, so a failure is kept, and the call ends.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "program.hpp"

namespace hybrid {

// Where every call finds its step, filled before anything is launched.
struct StepPlace {
  const int64_t* tokens;         // [1]
  const int64_t* ids;            // [tokens]
  const int64_t* positions;      // [tokens]
  const int64_t* const* blocks;  // [tokens]
};

// What the calls of a step share. They come one after the other, from whatever thread the driver has. Once one has failed
// the others do nothing, until the failure was taken.
class HostStep {
 public:
  explicit HostStep(const StepPlace& place) : place_(place) {}
  ~HostStep() { close(); }
  HostStep(const HostStep&) = delete;
  HostStep& operator=(const HostStep&) = delete;

  // Throws what a call threw since this was last asked for.
  void take_failure();

  // Waits for a call that is under way; those that still come do nothing. What programs hold may go then.
  void close();

 private:
  friend class HostFunction;
  void run(Program& program) noexcept;

  const StepPlace place_;
  const unsigned generation_ = forks();
  std::mutex turn_;
  bool closed_ = false;
  std::exception_ptr failure_;
  Workspace workspace_;
};

// A program as a driver calls it: `call(this)`.
class HostFunction {
 public:
  HostFunction(HostStep& step, Program& program) : step_(step), program_(program) {}
  HostFunction(const HostFunction&) = delete;
  HostFunction& operator=(const HostFunction&) = delete;

  static void call(void* function) noexcept { static_cast<HostFunction*>(function)->run(); }
  void run() noexcept;

  double seconds() const { return seconds_.load(std::memory_order_relaxed); }  // that all runs took
  double began() const { return began_.load(std::memory_order_relaxed); }      // the last run, by the steady clock
  double ended() const { return ended_.load(std::memory_order_relaxed); }

 private:
  HostStep& step_;
  Program& program_;
  std::atomic<double> seconds_{0}, began_{0}, ended_{0};
};

}  // namespace hybrid
