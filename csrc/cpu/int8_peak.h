// The ceiling of 8-bit products, for reports. No kernel computes with them yet, so it stands beside
// the dispatch table and not in it.
#pragma once

namespace smolvla::cpu {

// Sums of four 8-bit products in registers alone; returns the operations done, a multiply and an
// add being two. Null when this CPU has no such instruction that we know how to use.
using Int8Chain = double (*)(long iterations);
Int8Chain int8_chain();

}  // namespace smolvla::cpu
