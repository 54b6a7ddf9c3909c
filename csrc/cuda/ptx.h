// The instructions that CUDA C++ has no word for, and the warp's own arithmetic: thin wrappers, so
// that inline PTX stands in this file alone. In a test the emulator does the same
// (tests/cuda/emulator), so what a comment says here about layouts is tested.
//
// A warp's lane is written l, with g = l / 4 and t = l % 4. Matrices in fragments:
//
//     A [16, k] row-major     g picks the row, g + 8 too; t the columns
//     B [k, 8]                g picks the column, t the rows: a row-major weight [8 outputs, k] as
//                             it lies is B, no transposition
//     C, D [16, 8]            rows g and g + 8, columns 2t and 2t + 1
//
// Two 16-bit values of one register: the lower index in the low half.
#pragma once

#include "cuda/device.h"

namespace smolvla::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return int(threadIdx.x % 32); }  // of 1-D blocks
__device__ __forceinline__ int warp_index() { return int(threadIdx.x / 32); }

// --- tensor cores: d += A B; d accumulates in place ----------------------------------------------

// bfloat16 operands, float32 sums.
//     a[0] = A[g][2t, 2t+1]    a[1] = A[g+8][2t, 2t+1]    a[2] = A[g][2t+8, 2t+9]
//     a[3] = A[g+8][2t+8, 2t+9]
//     b0   = B[2t, 2t+1][g]    b1   = B[2t+8, 2t+9][g]
//     d[0], d[1] = D[g][2t, 2t+1]    d[2], d[3] = D[g+8][2t, 2t+1]
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#if defined(SMOLVLA_CUDA_EMULATED)
    emulator::mma_m16n8k16_bf16(d, a, b0, b1);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// int8 operands, int32 sums, k = 32. Four values a register, the lowest index in the low byte.
//     a[0] = A[g][4t .. 4t+3]        a[1] = A[g+8][4t .. 4t+3]
//     a[2] = A[g][4t+16 .. 4t+19]    a[3] = A[g+8][4t+16 .. 4t+19]
//     b0   = B[4t .. 4t+3][g]        b1   = B[4t+16 .. 4t+19][g]
// As bytes, A and B lie as pairs of bfloat16 do in mma_bf16: ldmatrix serves both.
__device__ __forceinline__ void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
#if defined(SMOLVLA_CUDA_EMULATED)
    emulator::mma_m16n8k32_s8(d, a, b0, b1);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// --- shared memory to fragments ------------------------------------------------------------------

// The 32-bit address that ldmatrix and cp.async take, of a pointer into shared memory. Offsets in
// bytes may be added to it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
#if defined(SMOLVLA_CUDA_EMULATED)
    return emulator::shared_address(pointer);
#else
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#endif
}

// Four matrices of 8 rows of 16 bytes. Lane 8i + r gives the address of row r of matrix i (16-byte
// aligned), and gets of matrix i in r[i] the pair of 16-bit values
//     matrix[g][2t, 2t+1]                       as it lies
//     matrix[2t][g], matrix[2t+1][g]            with _trans
// For A of mma_bf16 the four matrices are: rows 0-7, rows 8-15, rows 0-7 of the next 8 columns,
// rows 8-15 of those. So lane l gives row l % 16 and column 8 * (l / 16).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
#if defined(SMOLVLA_CUDA_EMULATED)
    emulator::ldmatrix(r, false, address);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
#if defined(SMOLVLA_CUDA_EMULATED)
    emulator::ldmatrix(r, true, address);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}

// --- global to shared memory, asynchronously -----------------------------------------------------
// The copying thread sees its copies after copy_wait; others only after a barrier that follows it.
// Both addresses are multiples of 16. Beyond source_bytes the destination gets zeros; with 0 the
// source is not read (and may be any address).

__device__ __forceinline__ void copy_16(uint32_t to, const void* from, int source_bytes = 16) {
#if defined(SMOLVLA_CUDA_EMULATED)
    emulator::copy_async(to, from, source_bytes);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(source_bytes)
                 : "memory");
#endif
}

// Copies since the last commit become a group; copy_wait<N> waits until at most N groups are open.
__device__ __forceinline__ void copy_commit() {
#if defined(SMOLVLA_CUDA_EMULATED)
    emulator::commit_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int GROUPS_LEFT>
__device__ __forceinline__ void copy_wait() {
#if defined(SMOLVLA_CUDA_EMULATED)
    emulator::wait_copies(GROUPS_LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
#endif
}
// Committed or not.
__device__ __forceinline__ void copy_wait_all() {
#if defined(SMOLVLA_CUDA_EMULATED)
    emulator::wait_all_copies();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// 16 bytes of read-only memory that is read once: past L1, through the read-only path.
__device__ __forceinline__ uint4 load_streamed(const uint4* from) {
#if defined(SMOLVLA_CUDA_EMULATED)
    return *from;
#else
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
#endif
}

// --- the warp ------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(kAllLanes, value, mask);
}
// Over LANES neighbours (a power of two), in every one of them, the same bits in all.
template <int LANES = 32>
__device__ __forceinline__ float sum_over(float value) {
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}
template <int LANES = 32>
__device__ __forceinline__ float max_over(float value) {
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}

}  // namespace smolvla::cuda

#include "cuda/ptx_numbers.h"
