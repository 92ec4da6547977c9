#include "lane.hpp"

#include <atomic>
#include <exception>
#include <stdexcept>
#include <thread>
#include <utility>

#include "signal.hpp"

namespace hybrid {

struct Lane::State {
  Signal given, done;
  uint64_t submitted = 0;
  Work work;
  std::atomic<bool> stopping{false};
  std::exception_ptr failure;
  bool closing = false;
  const unsigned generation = forks();
  std::thread worker;

  State() {
    const SignalsBlocked blocked;
    worker = std::thread([this] { run(); });
  }

  bool lost() const { return generation != forks(); }

  void require_worker() const {
    if (lost())
      throw std::runtime_error("the thread that computes for the other unit was lost in a fork; open the model anew");
  }

  void run() {
    Workspace memory;
    Seat seat;
    const auto ask = [this] {
      if (stopping.load(std::memory_order_relaxed)) throw std::runtime_error("the other unit was told to stop");
    };
    Interrupt interrupt(ask, Clock::duration::zero());
    for (uint64_t turn = 1;; ++turn) {
      given.wait(turn);
      if (closing) return;
      try {
        work(memory, seat, interrupt);
      } catch (...) {
        failure = std::current_exception();
      }
      done.notify();
    }
  }
};

Lane::Lane() : state_(new State) {}

Lane::~Lane() {
  if (lost()) return;  // in a child: the worker is the parent's, and all of it is left behind
  state_->closing = true;
  state_->given.notify();
  state_->worker.join();
  delete state_;
}

bool Lane::lost() const { return state_->lost(); }

void Lane::submit(Work work) {
  state_->require_worker();
  state_->work = std::move(work);
  state_->stopping.store(false, std::memory_order_relaxed);
  ++state_->submitted;
  state_->given.notify();
}

void Lane::stop() { state_->stopping.store(true, std::memory_order_relaxed); }

void Lane::wait(Interrupt* interrupt) {
  state_->require_worker();
  if (!interrupt) return state_->done.wait(state_->submitted);
  while (!state_->done.wait(state_->submitted, interrupt_interval)) interrupt->look(Clock::now());
}

void Lane::join() {
  wait(nullptr);
  if (state_->failure) std::rethrow_exception(std::exchange(state_->failure, nullptr));
}

}  // namespace hybrid
