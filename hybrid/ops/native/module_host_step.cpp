// The binding of `HostStep`: the host's programs of a step that a device's driver calls.
#include <nanobind/stl/pair.h>

#include <utility>

#include "checks.hpp"
#include "host_step.hpp"
#include "module.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using hybrid::array;
using hybrid::HostFunction;
using hybrid::HostStep;
using hybrid::Lane;

}  // namespace

void bind_host_step(nb::module_& m) {
  nb::class_<HostStep>(m, "HostStep")
      .def("__init__",
           [](HostStep* self, uintptr_t tokens, uintptr_t ids, uintptr_t positions, uintptr_t blocks) {
             new (self) HostStep({array<const int64_t>(tokens, "tokens"), array<const int64_t>(ids, "ids"),
                                  array<const int64_t>(positions, "positions"),
                                  array<const int64_t* const>(blocks, "blocks")});
           },
           "tokens"_a, "ids"_a, "positions"_a, "blocks"_a)
      .def("take_failure", &HostStep::take_failure, nb::call_guard<nb::gil_scoped_release>())
      .def("close", &HostStep::close, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<HostFunction>(m, "HostFunction")
      .def(nb::init<HostStep&, hybrid::Program&>(), "step"_a, "program"_a, nb::keep_alive<1, 2>(),
           nb::keep_alive<1, 3>())
      .def_prop_ro("function", [](const HostFunction&) { return reinterpret_cast<uintptr_t>(&HostFunction::call); })
      .def_prop_ro("context", [](const HostFunction& f) { return reinterpret_cast<uintptr_t>(&f); })
      .def_prop_ro("seconds", &HostFunction::seconds)
      .def_prop_ro("span", [](const HostFunction& f) { return std::make_pair(f.began(), f.ended()); })
      .def("run", &HostFunction::run, nb::call_guard<nb::gil_scoped_release>())
      .def("submit",
           [](HostFunction& function, Lane& lane) {
             lane.submit([&function](hybrid::Workspace&, hybrid::Seat&, hybrid::Interrupt&) { function.run(); });
           },
           "lane"_a);
}
