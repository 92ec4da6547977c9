#include "host_step.hpp"

#include <chrono>
#include <stdexcept>
#include <utility>

namespace hybrid {
namespace {

double now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

}  // namespace

void HostStep::run(Program& program) noexcept {
  if (generation_ != forks()) {  // the lock may be held for ever by a thread that only the parent has
    failure_ = std::make_exception_ptr(
        std::runtime_error("a forked process cannot go on with its parent's device; open the model anew"));
    return;
  }
  const std::lock_guard<std::mutex> lock(turn_);
  if (closed_ || failure_) return;
  try {
    const int64_t tokens = *place_.tokens;
    if (tokens < 1 || tokens > max_tokens) throw std::invalid_argument("tokens should be 1 to 16");
    Seat seat;
    program.run({static_cast<int>(tokens), place_.ids, place_.positions, place_.blocks}, workspace_, seat);
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void HostStep::take_failure() {
  std::exception_ptr taken;
  if (generation_ != forks()) {
    taken = std::exchange(failure_, nullptr);
  } else {
    const std::lock_guard<std::mutex> lock(turn_);
    taken = std::exchange(failure_, nullptr);
  }
  if (taken) std::rethrow_exception(taken);
}

void HostStep::close() {
  if (generation_ != forks()) return;  // nobody calls in a child
  const std::lock_guard<std::mutex> lock(turn_);
  closed_ = true;
}

void HostFunction::run() noexcept {
  const double began = now();
  step_.run(program_);
  const double ended = now();
  began_.store(began, std::memory_order_relaxed);
  ended_.store(ended, std::memory_order_relaxed);
  seconds_.store(seconds() + ended - began, std::memory_order_relaxed);
}

}  // namespace hybrid
