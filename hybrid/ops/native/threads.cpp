#include "threads.hpp"

#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <system_error>

namespace hybrid {
namespace {

std::atomic<unsigned> forked{0};
// Registered when the library is loaded, not on first use: a fork could meet that half done.
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.fetch_add(1, std::memory_order_relaxed); });

#if defined(__linux__)
cpu_set_t set_of(const Cores& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores) CPU_SET(core, &set);
  return set;
}

void require(int error) {
  if (error) throw std::system_error(error, std::generic_category(), "a thread cannot run on the cores it was given");
}
#endif

}  // namespace

unsigned forks() { return forked.load(std::memory_order_relaxed); }

SignalsBlocked::SignalsBlocked() {
  sigset_t all;
  sigfillset(&all);
  for (int fault : {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before_);
}

SignalsBlocked::~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

#if defined(__linux__)

void pin(std::thread& thread, const Cores& cores) {
  if (cores.empty()) return;
  const cpu_set_t set = set_of(cores);
  require(pthread_setaffinity_np(thread.native_handle(), sizeof set, &set));
}

void Seat::take(const Cores& cores) {
  if (cores.empty() || cores == at_) return;
  const cpu_set_t set = set_of(cores);
  if (at_.empty()) require(sched_getaffinity(0, sizeof before_, &before_) ? errno : 0);
  require(sched_setaffinity(0, sizeof set, &set) ? errno : 0);
  at_ = cores;
}

Seat::~Seat() {
  if (!at_.empty()) sched_setaffinity(0, sizeof before_, &before_);  // its cores may be gone: then it stays
}

#else

void pin(std::thread&, const Cores&) {}
void Seat::take(const Cores&) {}
Seat::~Seat() {}

#endif

}  // namespace hybrid
