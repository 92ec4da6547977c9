// The binding: every precondition is checked here, every operator runs without the interpreter lock.
#include "module.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <string>
#include <utility>

#include "checks.hpp"
#include "dispatch.hpp"
#include "guard.hpp"
#include "prefetch.hpp"
#include "signal.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using hybrid::Pool;
using hybrid::require;

constexpr int max_threads = 1024;
constexpr double max_slowdown = 100;

hybrid::Workspace& workspace() {
  thread_local hybrid::Workspace memory;
  return memory;
}

void sparse_ffn(Pool& pool, uintptr_t rows, int64_t stride_bytes, int64_t n_rows, int64_t hidden, int weight_format,
                bool gated, int activation, float cutoff, bool skip_inactive, uintptr_t bias, uintptr_t x,
                int64_t tokens, uintptr_t named, int64_t named_stride, uintptr_t y, uintptr_t counts,
                uintptr_t activations, int64_t activations_stride, uintptr_t tally, int64_t bucket_rows,
                int64_t first_row) {
  hybrid::require_tokens(tokens);
  const hybrid::Bank bank =
      hybrid::bank(rows, stride_bytes, n_rows, hidden, weight_format, gated, activation, cutoff, skip_inactive, bias);
  const float* in = hybrid::array<const float>(x, "x");
  float* out = hybrid::array<float>(y, "y");
  require(!named || tokens == 1 || named_stride >= n_rows, "named_stride should be at least n_rows");
  int64_t* found = hybrid::array<int64_t>(counts, "counts");
  const hybrid::Shown shown = hybrid::shown(activations, activations_stride, n_rows);
  const hybrid::Tally fired = hybrid::tally(tally, bucket_rows, first_row);
  const nb::gil_scoped_release released;
  hybrid::Team team(pool);
  Pool::Piece piece(pool);
  const hybrid::Counts total = hybrid::sparse_ffn(team, workspace(), bank, in, static_cast<int>(tokens),
                                                  reinterpret_cast<const uint8_t*>(named), named_stride, out, shown,
                                                  fired);
  found[0] = total.gated;
  found[1] = total.finished;
  hybrid::Interrupt signals = python_signals();
  piece.finish(&signals);
}

void linear(Pool& pool, uintptr_t weight, int64_t stride_bytes, int weight_format, int64_t out_features,
            int64_t in_features, uintptr_t bias, uintptr_t x, int64_t tokens, uintptr_t y) {
  hybrid::require_tokens(tokens);
  const hybrid::Matrix matrix =
      hybrid::matrix(weight, stride_bytes, weight_format, out_features, in_features, bias, hybrid::array<float>(y, "y"));
  const float* in = hybrid::array<const float>(x, "x");
  const nb::gil_scoped_release released;
  hybrid::Team team(pool);
  Pool::Piece piece(pool);
  hybrid::linear(team, workspace(), in, in_features, static_cast<int>(tokens), &matrix, 1);
  hybrid::Interrupt signals = python_signals();
  piece.finish(&signals);
}

// For what a unit computed without its pool, and which ended now.
void linger(Pool& pool, double seconds) {
  require(seconds >= 0 && seconds < 1e6, "seconds should be a duration");
  const nb::gil_scoped_release released;
  const Pool::Turn turn(pool);
  const auto worked = std::chrono::duration_cast<hybrid::Clock::duration>(std::chrono::duration<double>(seconds));
  const hybrid::Clock::time_point ended = hybrid::Clock::now();
  hybrid::Interrupt signals = python_signals();
  pool.linger(ended - worked, ended, &signals);
}

bool wait_for(hybrid::Signal& signal, uint64_t times, double seconds) {
  require(seconds >= 0 && seconds < 1e6, "seconds should be a duration");
  const nb::gil_scoped_release released;
  return signal.wait(times, std::chrono::duration<double>(seconds));
}

int64_t ask_for(uintptr_t address, int64_t bytes) {
  require(address && bytes >= 0, "an address and a number of bytes");
  const auto* from = reinterpret_cast<const unsigned char*>(address);
  const nb::gil_scoped_release released;
  return hybrid::ask_for(from, from + bytes);
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

int64_t greatest(uintptr_t x, int64_t n) {
  hybrid::require_size(n, "n");
  return hybrid::kernels().greatest(hybrid::array<const float>(x, "x"), n);
}

}  // namespace

hybrid::Interrupt python_signals() {
  const auto handle = [] {
    const nb::gil_scoped_acquire held;
    if (PyErr_CheckSignals()) throw nb::python_error();
  };
  return {handle, hybrid::interrupt_interval};
}

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // whatever still holds a pool at exit is the program's own affair
  hybrid::choose_isa();

  m.attr("BF16") = static_cast<int>(hybrid::bf16);
  m.attr("F16") = static_cast<int>(hybrid::f16);
  m.attr("Q8_0") = static_cast<int>(hybrid::q8_0);
  m.attr("Q4_0") = static_cast<int>(hybrid::q4_0);
  m.attr("B1") = static_cast<int>(hybrid::b1);
  m.attr("F32") = static_cast<int>(hybrid::f32);
  m.attr("RELU") = static_cast<int>(hybrid::relu);
  m.attr("RELU2") = static_cast<int>(hybrid::relu2);
  m.attr("SILU") = static_cast<int>(hybrid::silu);
  m.attr("GELU") = static_cast<int>(hybrid::gelu);
  m.attr("GELU_TANH") = static_cast<int>(hybrid::gelu_tanh);
  m.attr("DRELU") = static_cast<int>(hybrid::drelu);
  m.attr("MAX_TOKENS") = hybrid::max_tokens;
  m.attr("MAX_SLOWDOWN") = max_slowdown;

  m.def("isa", [] { return std::string(hybrid::kernels().name); });
  m.def("supported_isas", &hybrid::supported_isas);
  m.def("set_isa", &hybrid::set_isa, "name"_a);

  nb::class_<Pool>(m, "Pool")
      .def("__init__",
           [](Pool* self, int64_t threads, double slowdown, hybrid::Cores cores) {
             require(threads >= 1 && threads <= max_threads, "threads should be 1 to 1024");
             require(slowdown >= 1 && slowdown <= max_slowdown, "slowdown should be 1 to 100");
             require(cores.empty() || hybrid::threads_can_be_pinned, "threads cannot be kept on cores on this system");
             for (int core : cores) require(core >= 0 && core <= hybrid::max_core, "cores should be numbers of CPUs");
             new (self) Pool(static_cast<int>(threads), slowdown, std::move(cores));
           },
           "threads"_a, "slowdown"_a = 1.0, "cores"_a = hybrid::Cores())
      .def("linger", &linger, "seconds"_a)
      .def("rest", &Pool::rest, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("threads", &Pool::threads)
      .def_prop_ro("slowdown", &Pool::slowdown)
      .def_prop_ro("cores", &Pool::cores)
      .def_prop_ro("waits", &Pool::waits)
      .def_prop_ro("worked_seconds", &Pool::worked)
      .def_prop_ro("waited_seconds", &Pool::waited);
  nb::class_<hybrid::Signal>(m, "Signal")
      .def(nb::init<>())
      .def("notify", &hybrid::Signal::notify)
      .def("wait", nb::overload_cast<uint64_t>(&hybrid::Signal::wait), "times"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("wait_for", &wait_for, "times"_a, "seconds"_a);
  m.def("_count_tasks", &count_tasks, "pool"_a, "tasks"_a, "failing"_a = -1);

  m.def("sparse_ffn", &sparse_ffn, "pool"_a, "rows"_a, "stride_bytes"_a, "n_rows"_a, "hidden"_a, "weight_format"_a,
        "gated"_a, "activation"_a, "cutoff"_a, "skip_inactive"_a, "bias"_a, "x"_a, "tokens"_a, "named"_a,
        "named_stride"_a, "y"_a, "counts"_a, "activations"_a = 0,
        "activations_stride"_a = 0, "tally"_a = 0, "bucket_rows"_a = 1, "first_row"_a = 0);
  m.def("linear", &linear, "pool"_a, "weight"_a, "stride_bytes"_a, "weight_format"_a, "out_features"_a,
        "in_features"_a, "bias"_a, "x"_a, "tokens"_a, "y"_a);
  m.def("ask_for", &ask_for, "address"_a, "bytes"_a);
  m.def("greatest", &greatest, "x"_a, "n"_a);
  m.def("guard_mapping", &hybrid::guard_mapping, "address"_a, "length"_a, "path"_a);
  m.def("explain_bus_errors", &hybrid::explain_bus_errors);
  m.def("unguard_mapping", &hybrid::unguard_mapping, "handle"_a);
  bind_program(m);
  bind_host_step(m);
}
