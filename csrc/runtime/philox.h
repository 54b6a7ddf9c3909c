// Counter-based noise: value i of a seed depends on (seed, i) alone, so a shorter horizon uses the
// first rows of a longer one and every language and device can make the same numbers.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011); key =
// seed, counter = block number. The four words of a block give four normals by Box-Muller in
// double, rounded to float32: u = (word + 0.5) / 2^32, sqrt(-2 ln u1) * {cos, sin}(2 pi u2).
#pragma once

#include <cstddef>
#include <cstdint>

namespace smolvla {

void philox_normal(uint64_t seed, size_t count, float* out);

}  // namespace smolvla
