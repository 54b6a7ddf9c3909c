// CUDA on the CPU, for tests: csrc/cuda/device.h includes this where there is no nvcc. What a test
// may turn is in control.h, how it works in grid.h.
#pragma once

#include "builtins.h"
#include "contexts.h"
#include "intrinsics.h"
#include "keywords.h"
#include "numbers.h"
#include "runtime.h"
#include "vector_types.h"
#include "warp.h"
