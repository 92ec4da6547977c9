// A pool of threads that lives as long as its owner: quick to wake, quiet when idle, alive after fork. It stands for a
// unit that computes, perhaps on cores of its own, perhaps slower than this machine does.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "threads.hpp"
#include "watch.hpp"

namespace hybrid {

// The calling thread takes part in the work, so a pool of one starts no thread.
class Pool {
  struct State;
  using Function = void (*)(const void* context, int64_t task);

 public:
  explicit Pool(int threads, double slowdown = 1, Cores cores = {});
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  double slowdown() const { return slowdown_; }
  const Cores& cores() const { return cores_; }

  // Ends the threads; they are started anew when there is work. Nobody has a turn meanwhile.
  void rest();

  // Ends a piece of work that the unit computed within the caller's turn: waits until it took `slowdown` times as long
  // as it did. Returns when that was.
  Clock::time_point linger(Clock::time_point began, Clock::time_point ended, Interrupt* interrupt = nullptr);
  int64_t waits() const { return waits_.load(std::memory_order_relaxed); }  // pieces that were so ended
  double worked() const { return worked_.load(std::memory_order_relaxed); }  // seconds that they took
  double waited() const { return waited_.load(std::memory_order_relaxed); }  // seconds that were waited after them

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

  // A piece of work of the unit, in the calling thread and within its turn: on the unit's cores, and as slow as it is.
  class Piece {
   public:
    explicit Piece(Pool& pool) : pool_(pool) {
      seat_.take(pool.cores());
      began_ = Clock::now();
    }
    void finish(Interrupt* interrupt) { pool_.linger(began_, Clock::now(), interrupt); }

   private:
    Pool& pool_;
    Seat seat_;
    Clock::time_point began_;
  };

 private:
  State& revive();

  const int threads_;
  const double slowdown_;
  const Cores cores_;
  std::atomic<int64_t> waits_{0};
  std::atomic<double> worked_{0}, waited_{0};
  std::atomic<State*> state_;  // owned; null while it rests
};

}  // namespace hybrid
