#include "lane.hpp"

#include <chrono>
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
  double seconds = 0;
  std::exception_ptr failure;
  bool closing = false;
  const unsigned generation = forks();
  std::thread worker;

  State() {
    const SignalsBlocked blocked;
    worker = std::thread([this] { run(); });
  }

  void run() {
    Workspace memory;
    Seat seat;
    for (uint64_t turn = 1;; ++turn) {
      given.wait(turn);
      if (closing) return;
      const Clock::time_point began = Clock::now();
      try {
        work(memory, seat);
      } catch (...) {
        failure = std::current_exception();
      }
      seconds = std::chrono::duration<double>(Clock::now() - began).count();
      done.notify();
    }
  }
};

Lane::Lane() : state_(new State) {}

Lane::~Lane() {
  if (state_->generation != forks()) return;  // in a child: the worker is the parent's, and all of it is left behind
  state_->closing = true;
  state_->given.notify();
  state_->worker.join();
  delete state_;
}

void Lane::submit(Work work) {
  if (state_->generation != forks())
    throw std::runtime_error("the thread that computes for the other unit was lost in a fork; open the model anew");
  state_->work = std::move(work);
  ++state_->submitted;
  state_->given.notify();
}

double Lane::join() {
  state_->done.wait(state_->submitted);
  if (state_->failure) std::rethrow_exception(std::exchange(state_->failure, nullptr));
  return state_->seconds;
}

}  // namespace hybrid
