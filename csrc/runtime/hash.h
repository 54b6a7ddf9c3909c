// A fast checksum: did these bytes change since they were written? Not a cryptographic one.
//
// XXH64 of Yann Collet's xxHash (specification: github.com/Cyan4973/xxHash, doc/xxhash_spec.md,
// "XXH64 Algorithm Description"): four lanes of 64 bits, each a multiply, an add, a rotation and a
// multiply per 8 bytes, about 6 bytes a cycle, so that memory is the limit and not the arithmetic.
// Written anew from the specification; tests compare it with a plain transcription of it and with
// published values.
#pragma once

#include <cstddef>
#include <cstdint>

namespace smolvla {

class ThreadPool;

uint64_t xxh64(const void* data, size_t bytes, uint64_t seed = 0);

// The XXH64 of the XXH64s of pieces of 4 MiB (the seed of each: its number), computed by all
// threads; the same for every number of them.
uint64_t hash_of_pieces(const void* data, size_t bytes, ThreadPool& pool);

}  // namespace smolvla
