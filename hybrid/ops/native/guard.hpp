// What happens when a mapped file shrinks or its disk fails under a running model: one clear line instead of a crash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hybrid {

// Guards `length` bytes at `address`, mapped from the file `path`. The first call installs the SIGBUS handler.
// Throws std::invalid_argument for an empty or wrapping range, std::runtime_error when too many are guarded.
uint64_t guard_mapping(uintptr_t address, std::size_t length, const std::string& path);

// Ends a guard; to be called before the memory is unmapped. Throws std::invalid_argument for a handle not in force.
void unguard_mapping(uint64_t handle);

// From now on, every mapped file that shrinks or fails under this process ends it so, whoever mapped it: the kernel is
// asked which one it is (Linux). For programs; a library leaves what others map to them.
void explain_bus_errors();

}  // namespace hybrid
