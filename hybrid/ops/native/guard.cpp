#include "guard.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <system_error>

namespace hybrid {
namespace {

constexpr int max_guards = 4096;
constexpr std::size_t max_path = 1024;  // a longer one is cut in the message

// Read by the signal handler: a slot counts while `end` is not zero, and its path is written before that.
struct Guard {
  std::atomic<uintptr_t> begin;
  std::atomic<uintptr_t> end;
  uint64_t handle;
  char path[max_path];
};
static_assert(std::atomic<uintptr_t>::is_always_lock_free, "the signal handler may not wait");

Guard guards[max_guards];
std::mutex registration;
uint64_t last_handle = 0;
bool installed = false;
std::atomic_flag reported = ATOMIC_FLAG_INIT;
struct sigaction previous;

std::size_t append(char* line, std::size_t length, const char* text) {
  const std::size_t more = strlen(text);
  memcpy(line + length, text, more);
  return length + more;
}

// Async-signal-safe: reads the table, writes one line, ends the process.
void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Guard& guard : guards) {
    if (address < guard.begin || address >= guard.end) continue;
    while (reported.test_and_set()) pause();  // several threads met it: one tells, and ends them all
    char line[max_path + 256];
    std::size_t length = append(line, 0, "hybrid: ");
    length = append(line, length, guard.path);
    length = append(line, length,
                    " shrank or became unreadable while it was mapped; restore the file or pack the model again\n");
    for (std::size_t sent = 0; sent < length;) {
      const ssize_t n = write(STDERR_FILENO, line + sent, length - sent);
      if (n < 0 && errno != EINTR) break;
      sent += n > 0 ? static_cast<std::size_t>(n) : 0;
    }
    _exit(1);
  }
  const bool sent = info->si_code <= 0;  // by a process, so no access will be tried again on return
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else if (!sent || previous.sa_handler == SIG_DFL) {
    // Not ours: on return happens what would have happened without this handler.
    sigaction(SIGBUS, &previous, nullptr);
    if (sent) raise(SIGBUS);
  }
}

void install() {
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  // Asked for first, so that a fault in another thread meanwhile finds it.
  if (sigaction(SIGBUS, nullptr, &previous) || sigaction(SIGBUS, &action, nullptr))
    throw std::system_error(errno, std::generic_category(), "cannot install the handler of SIGBUS");
  installed = true;
}

}  // namespace

uint64_t guard_mapping(uintptr_t address, std::size_t length, const std::string& path) {
  if (!address || !length || address + length < address)
    throw std::invalid_argument("guard: the range is empty or wraps");
  const std::lock_guard<std::mutex> lock(registration);
  for (uint64_t slot = 0; slot < max_guards; ++slot) {
    Guard& guard = guards[slot];
    if (guard.end) continue;
    if (!installed) install();
    const std::size_t cut = std::min(path.size(), max_path - 1);
    memcpy(guard.path, path.data(), cut);
    guard.path[cut] = 0;
    guard.begin = address;
    guard.end = address + length;
    return guard.handle = ++last_handle * max_guards + slot;
  }
  throw std::runtime_error("guard: " + std::to_string(max_guards) + " files are mapped already");
}

void unguard_mapping(uint64_t handle) {
  const std::lock_guard<std::mutex> lock(registration);
  Guard& guard = guards[handle % max_guards];
  if (!guard.end || guard.handle != handle) throw std::invalid_argument("guard: the handle is not in force");
  guard.end = 0;
}

}  // namespace hybrid
