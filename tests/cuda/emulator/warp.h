// The warp-wide operations behind csrc/cuda/ptx.h, and CUDA's own names for some of them. Fragment
// layouts are written down in ptx.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "builtins.h"
#include "numbers.h"

namespace emulator {

uint32_t shuffle_xor(uint32_t lanes, uint32_t value, int mask);
uint32_t ballot(uint32_t lanes, bool predicate);
void sync_warp(uint32_t lanes);
void sync_block();

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void ldmatrix(uint32_t (&out)[4], bool transposed, uint32_t address);

uint32_t shared_address(const void* pointer);
// 16 bytes; beyond source_bytes: zeros.
void copy_async(uint32_t to, const void* from, int source_bytes);
void commit_copies();
void wait_copies(int groups_left);
void wait_all_copies();

}  // namespace emulator

inline void __syncthreads() { emulator::sync_block(); }
inline void __syncwarp(unsigned lanes = 0xffffffffu) { emulator::sync_warp(lanes); }
inline unsigned __ballot_sync(unsigned lanes, int predicate) {
    return emulator::ballot(lanes, predicate != 0);
}
inline int __all_sync(unsigned lanes, int predicate) {
    return emulator::ballot(lanes, predicate == 0) == 0;
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask) {
    uint32_t words[(sizeof(T) + 3) / 4] = {};
    std::memcpy(words, &value, sizeof value);
    for (uint32_t& word : words) word = emulator::shuffle_xor(lanes, word, mask);
    std::memcpy(&value, words, sizeof value);
    return value;
}
