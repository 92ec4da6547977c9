// A pool of threads that lives as long as its owner: quick to wake, quiet when idle, alive after fork.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace hybrid {

// The calling thread takes part in the work, so a pool of one starts no thread.
class Pool {
  struct State;
  using Function = void (*)(const void* context, int64_t task);

 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // A caller's turn on the pool: others wait until it ends.
  class Turn {
   public:
    explicit Turn(Pool& pool);

    // Calls body(task) once for each task from 0 to tasks - 1, each on any thread, claimed in rising order, a few
    // at a time while many are left; returns when all are done. Allocates nothing, so that a decode step may call it a
    // hundred times within one turn. The first exception of a body is thrown again here, after the others ended.
    template <class Body>
    void run(int64_t tasks, const Body& body) {
      run(tasks, [](const void* context, int64_t task) { (*static_cast<const Body*>(context))(task); }, &body);
    }

   private:
    void run(int64_t tasks, Function function, const void* context);

    State& state_;
    std::unique_lock<std::mutex> lock_;
  };

 private:
  State& revive();

  const int threads_;
  std::atomic<State*> state_;  // owned
};

}  // namespace hybrid
