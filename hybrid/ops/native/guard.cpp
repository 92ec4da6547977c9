#include "guard.hpp"

#include <fcntl.h>
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
std::atomic<bool> everywhere{false};
std::atomic_flag reported = ATOMIC_FLAG_INIT;
struct sigaction previous;

std::size_t append(char* line, std::size_t length, const char* text) {
  const std::size_t more = strlen(text);
  memcpy(line + length, text, more);
  return length + more;
}

// Async-signal-safe: one line, and the end of the process.
[[noreturn]] void end_with(const char* path, const char* mend) {
  while (reported.test_and_set()) pause();  // several threads met it: one tells, and ends them all
  char line[max_path + 256];
  std::size_t length = append(line, 0, "hybrid: ");
  length = append(line, length, path);
  length = append(line, length, " shrank or became unreadable while it was mapped; ");
  length = append(line, length, mend);
  for (std::size_t sent = 0; sent < length;) {
    const ssize_t n = write(STDERR_FILENO, line + sent, length - sent);
    if (n < 0 && errno != EINTR) break;
    sent += n > 0 ? static_cast<std::size_t>(n) : 0;
  }
  _exit(1);
}

uintptr_t hexadecimal(const char*& at) {
  uintptr_t value = 0;
  for (;; ++at) {
    if (*at >= '0' && *at <= '9') {
      value = value * 16 + static_cast<uintptr_t>(*at - '0');
    } else if (*at >= 'a' && *at <= 'f') {
      value = value * 16 + static_cast<uintptr_t>(*at - 'a' + 10);
    } else {
      return value;
    }
  }
}

// Async-signal-safe: the file that is mapped at an address, as the kernel lists mappings (proc(5)); false of none.
bool mapped_file(uintptr_t address, char (&path)[max_path]) {
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return false;
  char piece[512], line[max_path];
  std::size_t length = 0;
  bool found = false;
  for (ssize_t n; !found && (n = read(maps, piece, sizeof piece)) > 0;) {
    for (ssize_t i = 0; i < n && !found; ++i) {
      if (piece[i] != '\n') {
        if (length < sizeof line - 1) line[length++] = piece[i];
        continue;
      }
      line[length] = 0;
      length = 0;
      const char* at = line;
      const uintptr_t begin = hexadecimal(at);
      const uintptr_t end = *at == '-' ? hexadecimal(++at) : 0;
      const char* name = strchr(at, '/');
      if (address < begin || address >= end || !name) continue;
      memcpy(path, name, strlen(name) + 1);
      found = true;
    }
  }
  close(maps);
  return found;
}

// Async-signal-safe: reads the table, and the kernel's, writes one line, ends the process.
void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Guard& guard : guards) {
    if (address >= guard.begin && address < guard.end)
      end_with(guard.path, "restore the file or pack the model again\n");
  }
  char path[max_path];
  if (everywhere && info->si_code > 0 && mapped_file(address, path))
    end_with(path, "restore the file or make it anew\n");
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

void explain_bus_errors() {
  const std::lock_guard<std::mutex> lock(registration);
  if (!installed) install();
  everywhere = true;
}

}  // namespace hybrid
