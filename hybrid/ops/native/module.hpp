// What the files of the binding share.
#pragma once

#include <nanobind/nanobind.h>

#include "watch.hpp"

// Has Python handle the signals that came, which it otherwise does when a call returns; their exception ends the call.
hybrid::Interrupt python_signals();

void bind_program(nanobind::module_& m);
void bind_host_step(nanobind::module_& m);
