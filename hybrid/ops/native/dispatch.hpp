// Which instruction set the operators use.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace hybrid {

// Names that this CPU and this build support, the best one last.
std::vector<std::string> supported_isas();

// The table in use. At first the best supported, or the one that the environment variable HYBRID_ISA names.
const Kernels& kernels();

// Uses another table from the next call on. Throws std::invalid_argument where the name is unknown or not supported.
void set_isa(const std::string& name);

// Applies HYBRID_ISA, if it is set. Throws as set_isa does.
void choose_isa();

}  // namespace hybrid
