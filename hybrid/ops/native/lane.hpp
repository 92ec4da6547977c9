// One piece of work at a time on another thread, handed over and taken back without the interpreter.
#pragma once

#include <functional>

#include "threads.hpp"
#include "watch.hpp"
#include "workspace.hpp"

namespace hybrid {

// One caller at a time. The worker watches for work for a while before it sleeps; see Signal.
class Lane {
  struct State;

 public:
  // With the worker's memory, on cores that it keeps; what the interrupt throws is as good as any failure.
  using Work = std::function<void(Workspace&, Seat&, Interrupt&)>;

  Lane();
  ~Lane();  // not between a submission and its join
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  bool lost() const;  // in a child of a fork, where nothing else may be asked of it
  void submit(Work work);
  void stop();                     // has what was submitted end before long, by its interrupt
  void wait(Interrupt* interrupt); // until it is done
  void join();                     // waits too, and throws what it threw; the lane is free then

 private:
  State* const state_;  // owned
};

}  // namespace hybrid
