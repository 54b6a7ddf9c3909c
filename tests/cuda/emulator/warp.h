// The warp-wide operations behind csrc/cuda/ptx.h, and CUDA's own names for some of them. Fragment
// layouts are written down in ptx.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "builtins.h"
#include "numbers.h"

namespace emulator {

enum class Shuffle { index, up, down, butterfly };
uint32_t shuffle(Shuffle kind, uint32_t lanes, uint32_t value, int operand, int width);
uint32_t ballot(uint32_t lanes, bool predicate);
uint32_t reduce_add(uint32_t lanes, uint32_t value);
void sync_warp(uint32_t lanes);
void sync_block(int barrier, int threads);

void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_m16n8k16_s8(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0);
// count: 1, 2 or 4 matrices.
void ldmatrix(uint32_t* out, int count, bool transposed, uint32_t address);

uint32_t shared_address(const void* pointer);
// bytes 4, 8 or 16; beyond source_bytes: zeros.
void copy_async(uint32_t to, const void* from, int bytes, int source_bytes);
void commit_copies();
void wait_copies(int groups_left);
void wait_all_copies();
void back_off();

}  // namespace emulator

inline void __syncthreads() { emulator::sync_block(0, 0); }
inline void __syncwarp(unsigned lanes = 0xffffffffu) { emulator::sync_warp(lanes); }
inline unsigned __ballot_sync(unsigned lanes, int predicate) {
    return emulator::ballot(lanes, predicate != 0);
}
inline int __any_sync(unsigned lanes, int predicate) {
    return emulator::ballot(lanes, predicate != 0) != 0;
}
inline int __all_sync(unsigned lanes, int predicate) {
    return emulator::ballot(lanes, predicate == 0) == 0;
}
inline unsigned __reduce_add_sync(unsigned lanes, unsigned value) {
    return emulator::reduce_add(lanes, value);
}
inline int __reduce_add_sync(unsigned lanes, int value) {
    return int(emulator::reduce_add(lanes, unsigned(value)));
}

namespace emulator {
template <class T>
T shuffle_value(Shuffle kind, uint32_t lanes, T value, int operand, int width) {
    uint32_t words[(sizeof(T) + 3) / 4] = {};
    std::memcpy(words, &value, sizeof value);
    for (uint32_t& word : words) word = shuffle(kind, lanes, word, operand, width);
    std::memcpy(&value, words, sizeof value);
    return value;
}
}  // namespace emulator
template <class T>
T __shfl_sync(unsigned lanes, T value, int source, int width = 32) {
    return emulator::shuffle_value(emulator::Shuffle::index, lanes, value, source, width);
}
template <class T>
T __shfl_up_sync(unsigned lanes, T value, unsigned delta, int width = 32) {
    return emulator::shuffle_value(emulator::Shuffle::up, lanes, value, int(delta), width);
}
template <class T>
T __shfl_down_sync(unsigned lanes, T value, unsigned delta, int width = 32) {
    return emulator::shuffle_value(emulator::Shuffle::down, lanes, value, int(delta), width);
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask, int width = 32) {
    return emulator::shuffle_value(emulator::Shuffle::butterfly, lanes, value, mask, width);
}
