// What the checks share: repeatable random numbers, memory that ends where nothing may be read, and comparisons.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>

#include "kernels.hpp"

namespace check {

// Says what is being checked; shown with every failure, also of a fault.
void set_context(const std::string& text);
template <class... Parts>
void context(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  set_context(text.str());
}

void same_bits(const char* what, const void* a, const void* b, int64_t bytes);
void same(const char* what, int64_t a, int64_t b);

// |a - b| <= tolerance times the greatest |b| (or `usual`, where that is more), for each of n; NaN is close to nothing.
void close(const char* what, const float* a, const float* b, int64_t n, float usual = 0, float tolerance = 3e-5f);

int64_t comparisons();
int64_t failures();

// Makes a fault report the context and end the program with status 1.
void report_faults();

// SplitMix64 (Steele, Lea and Flood, 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  bool chance(double p) { return unit() < p; }
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  float real() { return static_cast<float>(2 * unit() - 1); }  // between -1 and 1

 private:
  uint64_t state_;
};

// Bytes at whose end lies a page that faults.
void* allocate(int64_t bytes);
void release(void* p, int64_t bytes);

// n elements, at whose end lies a page that faults. Filled with bytes 255: a NaN in every floating-point format.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n) : n_(n), pages_(allocate(n * sizeof(T)), Free{n * static_cast<int64_t>(sizeof(T))}) {}
  T* get() const { return static_cast<T*>(pages_.get()); }
  T& operator[](int64_t i) const { return get()[i]; }
  int64_t size() const { return n_; }

 private:
  struct Free {
    int64_t bytes;
    void operator()(void* p) const { release(p, bytes); }
  };
  int64_t n_;
  std::unique_ptr<void, Free> pages_;
};

inline Guarded<float> random_floats(Random& random, int64_t n, float scale = 1) {
  Guarded<float> x(n);
  for (int64_t i = 0; i < n; ++i) x[i] = random.real() * scale;
  return x;
}

const char* name(hybrid::Format format);

// Each file's checks of one table against the portable one.
void check_state(const hybrid::Kernels& table, const hybrid::Kernels& portable);
void check_products(const hybrid::Kernels& table, const hybrid::Kernels& portable);
void check_attention(const hybrid::Kernels& table, const hybrid::Kernels& portable);

// The operators as they cut work up, with the table in use, against sums in double precision.
void check_attention_operator(const char* isa);
void check_sparse_ffn_operator(const char* isa);

}  // namespace check
