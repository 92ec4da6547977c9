// Waiting without sleeping: for what takes less time than waking a sleeper, which is tens of microseconds.
#pragma once

#include <chrono>
#include <functional>
#include <thread>
#include <utility>

namespace hybrid {

using Clock = std::chrono::steady_clock;

// How long a thread watches for its next work before it sleeps: longer than what lies between two tokens of a decode
// loop (sampling, in the interpreter), because waking a sleeper costs tens of microseconds.
constexpr std::chrono::microseconds watch_time{400};
// How often a thread that waits offers its core to others: seldom enough to cost nothing where nobody wants it.
constexpr std::chrono::microseconds yield_interval{10};
// How often what takes long looks whether it is to end: as often as nobody minds waiting after an interrupt.
constexpr std::chrono::milliseconds interrupt_interval{50};
constexpr int pauses_per_look = 16;  // at the clock: 0.3 to 1 us

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // as long as a pause of x86; `yield` does nothing on most cores
#endif
}

// Waits busily until done(), at most `limit`, timed by the clock because a pause is 10 to 140 cycles long, depending on
// the processor. Returns whether done() held.
template <class Done>
bool watch(Clock::duration limit, const Done& done) {
  if (done()) return true;
  const Clock::time_point start = Clock::now();
  Clock::time_point yielded = start;
  for (;;) {
    for (int i = 0; i < pauses_per_look; ++i) {
      pause_briefly();
      if (done()) return true;
    }
    const Clock::time_point now = Clock::now();
    if (now - start >= limit) return false;
    if (now - yielded >= yield_interval) {
      std::this_thread::yield();
      yielded = Clock::now();
    }
  }
}

// How what takes long is ended from outside: asked every now and then, it throws once that is wanted.
class Interrupt {
 public:
  Interrupt(std::function<void()> ask, Clock::duration interval) : ask_(std::move(ask)), interval_(interval) {}

  void look(Clock::time_point now) {
    if (now - asked_ < interval_) return;
    asked_ = now;
    ask_();
  }

 private:
  const std::function<void()> ask_;
  const Clock::duration interval_;
  Clock::time_point asked_ = Clock::now();
};

// Waits busily until a time, to a tenth of a microsecond: the core counts as used, so it is offered to nobody. Returns
// when that was.
inline Clock::time_point wait_until(Clock::time_point end, Interrupt* interrupt) {
  Clock::time_point now = Clock::now();
  while (now < end) {
    if (interrupt) interrupt->look(now);
    pause_briefly();
    now = Clock::now();
  }
  return now;
}

}  // namespace hybrid
