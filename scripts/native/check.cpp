#include "check.hpp"

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <iostream>

#include <sys/mman.h>
#include <unistd.h>

namespace check {
namespace {

constexpr int64_t most_shown = 20;
char current[256] = "";
int64_t compared = 0, failed = 0;

template <class... Parts>
void fail(const char* what, const Parts&... parts) {
  if (++failed > most_shown) return;
  std::ostringstream how;
  how.precision(9);
  (how << ... << parts);
  std::cout << "FAILED " << current << ": " << what << ' ' << how.str() << std::endl;
}

int64_t page() {
  static const int64_t size = sysconf(_SC_PAGESIZE);
  return size;
}

int64_t whole_pages(int64_t bytes) { return (bytes + page() - 1) / page() * page(); }

void on_fault(int) {
  constexpr char text[] = "FAULT (memory or instruction) in: ";
  if (write(STDOUT_FILENO, text, sizeof text - 1) < 0 || write(STDOUT_FILENO, current, std::strlen(current)) < 0 ||
      write(STDOUT_FILENO, "\n", 1) < 0)
    _exit(2);
  _exit(1);
}

}  // namespace

void set_context(const std::string& text) { std::snprintf(current, sizeof current, "%s", text.c_str()); }

void same_bits(const char* what, const void* a, const void* b, int64_t bytes) {
  ++compared;
  if (!bytes || std::memcmp(a, b, bytes) == 0) return;
  const auto *x = static_cast<const unsigned char*>(a), *y = static_cast<const unsigned char*>(b);
  int64_t at = 0;
  while (x[at] == y[at]) ++at;
  fail(what, "differ in byte ", at, " of ", bytes);
}

void same(const char* what, int64_t a, int64_t b) {
  ++compared;
  if (a != b) fail(what, "is ", a, ", not ", b);
}

void close(const char* what, const float* a, const float* b, int64_t n, float usual, float tolerance) {
  ++compared;
  float greatest = usual;
  for (int64_t i = 0; i < n; ++i) greatest = std::fmax(greatest, std::fabs(b[i]));
  for (int64_t i = 0; i < n; ++i) {
    if (std::fabs(a[i] - b[i]) <= tolerance * greatest) continue;
    return fail(what, "[", i, " of ", n, "] is ", a[i], ", not ", b[i]);
  }
}

int64_t comparisons() { return compared; }
int64_t failures() { return failed; }

void report_faults() {
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL}) std::signal(signal, on_fault);
}

void* allocate(int64_t bytes) {
  const int64_t length = whole_pages(bytes);
  void* const from = mmap(nullptr, length + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (from == MAP_FAILED || mprotect(static_cast<char*>(from) + length, page(), PROT_NONE) != 0) {
    std::perror("mmap");
    std::exit(2);
  }
  std::memset(from, 255, length);
  return static_cast<char*>(from) + length - bytes;
}

void release(void* p, int64_t bytes) {
  const int64_t length = whole_pages(bytes);
  munmap(static_cast<char*>(p) + bytes - length, length + page());
}

const char* name(hybrid::Format format) {
  constexpr const char* names[] = {"bf16", "f16", "q8_0", "q4_0", "b1", "f32"};
  return names[format];
}

}  // namespace check
