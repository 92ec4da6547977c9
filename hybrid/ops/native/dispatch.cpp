#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace hybrid {
namespace {

std::atomic<const Kernels*> current{portable_kernels()};

std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> tables = {portable_kernels()};
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a, b, c = 0, d;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  unsigned more = 0;  // gcc 12 does not know avxvnni by name
  const bool leaf = __get_cpuid_count(7, 1, &more, &b, &c, &d);
  const bool avxvnni = avx2 && leaf && more >> 4 & 1;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx2 && avx2_kernels()) tables.push_back(avx2_kernels());
  if (avxvnni && avxvnni_kernels()) tables.push_back(avxvnni_kernels());
  if (avx512 && avx512_kernels()) tables.push_back(avx512_kernels());
#elif defined(__aarch64__)
#if defined(__linux__)
  const bool dot_product = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  constexpr bool dot_product = true;  // the compiler's default target is the least of Apple's processors, which has it
#endif
  if (dot_product && neon_kernels()) tables.push_back(neon_kernels());
#endif
  return tables;
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : tables()) names.emplace_back(table->name);
  return names;
}

const Kernels& kernels() { return *current; }

void set_isa(const std::string& name) {
  std::string supported;
  for (const Kernels* table : tables()) {
    if (name == table->name) {
      current = table;
      return;
    }
    supported += (supported.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not supported here; supported are " + supported);
}

void choose_isa() {
  const char* forced = std::getenv("HYBRID_ISA");
  if (!forced || !*forced) {
    current = tables().back();
    return;
  }
  try {
    set_isa(forced);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("HYBRID_ISA: ") + error.what());
  }
}

}  // namespace hybrid
