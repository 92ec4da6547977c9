// One piece of work at a time on another thread, handed over and taken back without the interpreter.
#pragma once

#include <functional>

#include "threads.hpp"
#include "workspace.hpp"

namespace hybrid {

// One caller at a time. The worker watches for work for a while before it sleeps; see Signal.
class Lane {
  struct State;

 public:
  using Work = std::function<void(Workspace&, Seat&)>;  // with the worker's memory, on cores that it keeps

  Lane();
  ~Lane();  // after a join
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void submit(Work work);

  // Waits for what was submitted: the seconds that it took. Throws what it threw; the lane is free then too.
  double join();

 private:
  State* const state_;  // owned
};

}  // namespace hybrid
