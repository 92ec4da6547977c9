// The binding: every precondition is checked here, every operator runs without the interpreter lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "dispatch.hpp"
#include "guard.hpp"
#include "operators.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using hybrid::Pool;

constexpr int64_t max_features = 1 << 24;  // also outputs and rows: sizes in bytes then stay far from overflowing
constexpr int64_t max_stride = int64_t{1} << 32;
constexpr int max_threads = 1024;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

bool aligned(uintptr_t address, uintptr_t to) { return address % to == 0; }

void require_common(int format, int64_t tokens) {
  require(format == hybrid::bf16 || format == hybrid::f16, "weight_format should be BF16 or F16");
  require(tokens >= 1 && tokens <= hybrid::max_tokens, "tokens should be 1 to 16");
}

void sparse_ffn(Pool& pool, uintptr_t rows, int64_t stride_bytes, int64_t n_rows, int64_t hidden, int weight_format,
                bool gated, int activation, bool skip_inactive, uintptr_t bias, uintptr_t x, int64_t tokens,
                uintptr_t named, int64_t named_stride, uintptr_t y, uintptr_t counts) {
  require_common(weight_format, tokens);
  require(activation == hybrid::relu || activation == hybrid::silu, "activation should be RELU or SILU");
  require(n_rows >= 0 && n_rows <= max_features, "n_rows is out of range");
  require(hidden >= 1 && hidden <= max_features, "hidden is out of range");
  require(stride_bytes >= (gated ? 3 : 2) * 2 * hidden && stride_bytes <= max_stride && stride_bytes % 2 == 0,
          "stride_bytes should be even and hold all vectors of a row");
  require((rows || !n_rows) && aligned(rows, 2), "rows should be an address aligned to 2");
  require(!bias || !gated, "bias is for models without a gate");
  require(aligned(bias, 4), "bias should be aligned to 4");
  require(x && aligned(x, 4), "x should be an address aligned to 4");
  require(y && aligned(y, 4), "y should be an address aligned to 4");
  require(!named || tokens == 1 || named_stride >= n_rows, "named_stride should be at least n_rows");
  require(counts && aligned(counts, 8), "counts should be an address aligned to 8");
  const hybrid::FfnCall call = {
      pointer<const unsigned char>(rows), stride_bytes, n_rows, hidden, gated,
      static_cast<hybrid::Activation>(activation), skip_inactive, pointer<const float>(bias), pointer<const float>(x),
      static_cast<int>(tokens), pointer<const uint8_t>(named), named_stride};
  const nb::gil_scoped_release released;
  const hybrid::Counts found =
      hybrid::sparse_ffn(pool, call, static_cast<hybrid::WeightFormat>(weight_format), pointer<float>(y));
  pointer<int64_t>(counts)[0] = found.gated;
  pointer<int64_t>(counts)[1] = found.finished;
}

void linear(Pool& pool, uintptr_t weight, int64_t stride_bytes, int weight_format, int64_t out_features,
            int64_t in_features, uintptr_t bias, uintptr_t x, int64_t tokens, uintptr_t y) {
  require_common(weight_format, tokens);
  require(out_features >= 1 && out_features <= max_features, "out_features is out of range");
  require(in_features >= 1 && in_features <= max_features, "in_features is out of range");
  require(stride_bytes >= 2 * in_features && stride_bytes <= max_stride && stride_bytes % 2 == 0,
          "stride_bytes should be even and hold a row of the weight");
  require(weight && aligned(weight, 2), "weight should be an address aligned to 2");
  require(aligned(bias, 4), "bias should be aligned to 4");
  require(x && aligned(x, 4), "x should be an address aligned to 4");
  require(y && aligned(y, 4), "y should be an address aligned to 4");
  const hybrid::LinearCall call = {pointer<const unsigned char>(weight), stride_bytes, out_features, in_features,
                                   pointer<const float>(bias), pointer<const float>(x), static_cast<int>(tokens),
                                   pointer<float>(y)};
  const nb::gil_scoped_release released;
  hybrid::linear(pool, call, static_cast<hybrid::WeightFormat>(weight_format));
}

// For the tests: runs tasks that only count themselves; the one numbered `failing` throws. Returns how many ran.
int64_t count_tasks(Pool& pool, int64_t tasks, int64_t failing) {
  const nb::gil_scoped_release released;
  std::atomic<int64_t> ran{0};
  Pool::Turn turn(pool);
  turn.run(tasks, [&](int64_t task) {
    ++ran;
    if (task == failing) throw std::runtime_error("task " + std::to_string(task) + " failed");
  });
  return ran;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // whatever still holds a pool at exit is the program's own affair
  hybrid::choose_isa();

  m.attr("BF16") = static_cast<int>(hybrid::bf16);
  m.attr("F16") = static_cast<int>(hybrid::f16);
  m.attr("RELU") = static_cast<int>(hybrid::relu);
  m.attr("SILU") = static_cast<int>(hybrid::silu);
  m.attr("MAX_TOKENS") = hybrid::max_tokens;

  m.def("isa", [] { return std::string(hybrid::kernels().name); });
  m.def("supported_isas", &hybrid::supported_isas);
  m.def("set_isa", &hybrid::set_isa, "name"_a);

  nb::class_<Pool>(m, "Pool")
      .def("__init__",
           [](Pool* self, int64_t threads) {
             require(threads >= 1 && threads <= max_threads, "threads should be 1 to 1024");
             new (self) Pool(static_cast<int>(threads));
           },
           "threads"_a)
      .def_prop_ro("threads", &Pool::threads);
  m.def("_count_tasks", &count_tasks, "pool"_a, "tasks"_a, "failing"_a = -1);

  m.def("sparse_ffn", &sparse_ffn, "pool"_a, "rows"_a, "stride_bytes"_a, "n_rows"_a, "hidden"_a, "weight_format"_a,
        "gated"_a, "activation"_a, "skip_inactive"_a, "bias"_a, "x"_a, "tokens"_a, "named"_a, "named_stride"_a, "y"_a,
        "counts"_a);
  m.def("linear", &linear, "pool"_a, "weight"_a, "stride_bytes"_a, "weight_format"_a, "out_features"_a,
        "in_features"_a, "bias"_a, "x"_a, "tokens"_a, "y"_a);
  m.def("guard_mapping", &hybrid::guard_mapping, "address"_a, "length"_a, "path"_a);
  m.def("unguard_mapping", &hybrid::unguard_mapping, "handle"_a);
}
