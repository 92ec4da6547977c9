#include "prefetch.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

#include <algorithm>

namespace hybrid {
namespace {

constexpr int64_t patience = 8;       // looks in vain before the first is left out
constexpr int64_t most_skipped = 15;  // one after the other: a look costs as much as a small part of the rows

// Calls range(first, last) for every run of rows that some token names.
template <class Range>
void each_run(const NamedRows& rows, int tokens, const Range& range) {
  const auto wanted = [&](int64_t row) {
    for (int t = 0; t < tokens; ++t)
      if (rows.named[t * rows.named_stride + row]) return true;
    return false;
  };
  for (int64_t row = 0; row < rows.n_rows; ++row) {
    if (!wanted(row)) continue;
    const int64_t first = row;
    while (row + 1 < rows.n_rows && wanted(row + 1)) ++row;
    range(first, row + 1);
  }
}

#if defined(__linux__)
// What this thread has the drive read, as the system counts it: when it asks, not when it is there.
class Asked {
 public:
  int64_t bytes() const { return (blocks() - before_) * 512; }

 private:
  static int64_t blocks() {
    rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_inblock;
  }
  const int64_t before_ = blocks();
};

void ask(const unsigned char* from, const unsigned char* to) {
  static const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(from) / page * page;
  madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(to) - begin, MADV_WILLNEED);  // a hint: it may fail
}
#else
struct Asked {
  int64_t bytes() const { return 0; }
};

void ask(const unsigned char*, const unsigned char*) {}
#endif

}  // namespace

int64_t ask_for(const unsigned char* from, const unsigned char* to) {
  const Asked asked;
  ask(from, to);
  return asked.bytes();
}

void Request::run(int tokens) {
  if (skipped_ < std::clamp<int64_t>(in_vain_ - patience, 0, most_skipped)) {
    ++skipped_;
    return;
  }
  skipped_ = 0;
  const Asked asked;
  each_run(rows_, tokens, [&](int64_t first, int64_t last) {
    ask(rows_.rows + first * rows_.stride_bytes, rows_.rows + (last - 1) * rows_.stride_bytes + rows_.row_bytes);
  });
  asked_ += asked.bytes();
  in_vain_ = asked.bytes() ? 0 : in_vain_ + 1;
}

}  // namespace hybrid
