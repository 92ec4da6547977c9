// What threads have in common: which cores they run on, and what the module's own ones do about signals and forks.
#pragma once

#include <signal.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <thread>
#include <vector>

namespace hybrid {

using Cores = std::vector<int>;  // numbers of CPUs; none at all leaves a thread where it is

#if defined(__linux__)
constexpr bool threads_can_be_pinned = true;
constexpr int max_core = CPU_SETSIZE - 1;
#else
constexpr bool threads_can_be_pinned = false;
constexpr int max_core = -1;
#endif

// How often this process, or one that it was forked from, became a child since the library was loaded: in a child the
// threads are the parent's, and a lock may be held by one of them for ever.
unsigned forks();

// Signals meant for the program go to its own threads; faults still reach the thread that caused them. Threads that are
// started while this lives keep it so.
class SignalsBlocked {
 public:
  SignalsBlocked();
  ~SignalsBlocked();
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// Keeps a thread on some cores for good. Throws std::system_error where the process may use none of them.
void pin(std::thread& thread, const Cores& cores);

// Where the calling thread computes: on the cores that were taken last, and back where it was when this ends.
class Seat {
 public:
  Seat() = default;
  ~Seat();
  Seat(const Seat&) = delete;
  Seat& operator=(const Seat&) = delete;

  void take(const Cores& cores);  // throws as `pin` does

 private:
#if defined(__linux__)
  Cores at_;  // none until some were taken
  cpu_set_t before_;
#endif
};

}  // namespace hybrid
