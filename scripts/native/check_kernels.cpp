// Checks every table of kernels that this processor and this build support.
//
//   check_kernels [NAME...]     the names, if given, are those that must be supported, the portable one first
//
// Every entry of a table is run against the portable one on random data, over odd sizes, at the end of readable memory;
// a token is run alone and in a batch, work whole and in parts. The exit status is 0 where all of it agreed.
#include <iostream>
#include <string>
#include <vector>

#include "check.hpp"
#include "dispatch.hpp"

int main(int argc, char** argv) {
  check::report_faults();
  const std::vector<std::string> names = hybrid::supported_isas(), wanted(argv + 1, argv + argc);
  if (argc > 1 && names != wanted) {
    std::cout << "FAILED: supported here are";
    for (const std::string& name : names) std::cout << ' ' << name;
    std::cout << std::endl;
    return 1;
  }
  const hybrid::Kernels& portable = *hybrid::portable_kernels();
  for (const std::string& name : names) {
    const int64_t compared = -check::comparisons(), failed = -check::failures();
    hybrid::set_isa(name);
    const hybrid::Kernels& table = hybrid::kernels();
    check::check_state(table, portable);
    check::check_products(table, portable);
    check::check_attention(table, portable);
    check::check_sparse_ffn_operator(table.name);
    check::check_attention_operator(table.name);
    std::cout << name << ": " << compared + check::comparisons() << " comparisons, " << failed + check::failures()
              << " failed" << std::endl;
  }
  return check::failures() ? 1 : 0;
}
