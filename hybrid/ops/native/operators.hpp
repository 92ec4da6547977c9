// The operators: how their work is cut up, shared among the threads of a pool and put together again.
#pragma once

#include "kernels.hpp"
#include "pool.hpp"

namespace hybrid {

// y [tokens, hidden] = the call's rows, summed. The caller checked the arguments.
Counts sparse_ffn(Pool& pool, const FfnCall& call, WeightFormat format, float* y);

void linear(Pool& pool, const LinearCall& call, WeightFormat format);

}  // namespace hybrid
