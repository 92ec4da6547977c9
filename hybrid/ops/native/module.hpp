// What the files of the binding share.
#pragma once

#include <nanobind/nanobind.h>

void bind_program(nanobind::module_& m);
void bind_host_step(nanobind::module_& m);
