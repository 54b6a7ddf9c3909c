// softmax(q k^T / sqrt(head_dim)) v over the first lengths[row] keys.
//
// Queries that share a key/value head are rows of one problem: packed row p is query row
// p / group, head kv_head * group + p % group (group: query heads to a key/value head). So keys and
// values are read once for all of them, and 50 rows of 15 heads on 5 fill 10 tiles of 16, not 20.
#include "cuda/epilogue.cuh"

namespace smolvla::cuda {
namespace {

constexpr int kHeadDim = 64;             // of attention_bf16
constexpr int kKeys = 64;                // of a tile
constexpr int kRowBytes = kHeadDim * 2;  // of q, k, v in shared memory: 8 chunks of 16 bytes
constexpr float kLog2e = 1.4426950408889634f;

// Chunks permuted by the row, so that the eight rows of ldmatrix lie in different banks.
__device__ __forceinline__ int slot(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

struct Problem {
    Mat q, out;
    const int* lengths;
    const char *keys, *values;  // [kv_heads, capacity, head_dim]
    int capacity, group, head_dim;
    float scale;
    bool wide;  // rows of q lie on 16 bytes
};

// Rows first... of keys or values; zeros from row `rows` on, so that no stale number gets in.
template <int THREADS>
__device__ __forceinline__ void load_tile(uint32_t to, const char* from, int first, int rows) {
    static_assert(kKeys * 8 % THREADS == 0, "every thread copies as many chunks");
#pragma unroll 4
    for (int j = 0; j < kKeys * 8 / THREADS; ++j) {
        const int i = j * THREADS + threadIdx.x, r = i / 8, chunk = i % 8;
        const bool here = first + r < rows;
        copy_16(to + slot(r, chunk),
                here ? from + size_t(first + r) * kRowBytes + chunk * 16 : from, here ? 16 : 0);
    }
}

// A warp takes 16 packed rows and runs over the keys once (FlashAttention-2): scores of 64 keys,
// running maximum and sum of each row, both in the lanes that hold the row.
template <int WARPS>
__device__ __forceinline__ void attend(const Problem& p) {
    constexpr int kThreads = 32 * WARPS, kRows = 16 * WARPS;
    constexpr int kTileBytes = kKeys * kRowBytes;
    char* queries = shared_memory<char>();
    const uint32_t qs = shared_address(queries);
    const uint32_t ring = qs + kRows * kRowBytes;  // two stages of keys and values
    int* longest = reinterpret_cast<int*>(queries + kRows * kRowBytes + 4 * kTileBytes);
    const int lane = lane_index(), g = lane / 4, t = lane % 4, warp = warp_index();
    const int kv_head = blockIdx.y, packed0 = blockIdx.x * kRows, packed_rows = p.q.rows * p.group;

    int length[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int packed = packed0 + warp * 16 + i * 8 + g;
        length[i] = packed < packed_rows ? min(p.lengths[packed / p.group], p.capacity) : 0;
    }
    int most = max(length[0], length[1]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) most = max(most, shuffle_xor(most, mask));
    if (lane == 0) longest[warp] = most;

#pragma unroll
    for (int j = 0; j < kRows * 8 / kThreads; ++j) {
        const int i = j * kThreads + threadIdx.x, r = i / 8, chunk = i % 8, packed = packed0 + r;
        const bool here = packed < packed_rows;
        const int row = here ? packed / p.group : 0;
        const int head = kv_head * p.group + (here ? packed % p.group : 0);
        uint4 eight = {};
        if (here && p.q.storage == Storage::f32) {
            const float* from = p.q.data + row * p.q.ld + head * kHeadDim + chunk * 8;
            float low[4], high[4];
            load_four(from, 4, p.wide, low);
            load_four(from + 4, 4, p.wide, high);
            eight = {pack_bf162(low[0], low[1]), pack_bf162(low[2], low[3]),
                     pack_bf162(high[0], high[1]), pack_bf162(high[2], high[3])};
        } else if (here) {
            const float* from = p.q.data + row * p.q.ld + (head * kHeadDim + chunk * 8) / 2;
            eight = *reinterpret_cast<const uint4*>(from);
        }
        *reinterpret_cast<uint4*>(queries + slot(r, chunk)) = eight;
    }
    __syncthreads();
    int keys = longest[0];
#pragma unroll
    for (int w = 1; w < WARPS; ++w) keys = max(keys, longest[w]);
    const int tiles = (keys + kKeys - 1) / kKeys;
    const size_t head_bytes = size_t(p.capacity) * kRowBytes;
    const char *k_head = p.keys + kv_head * head_bytes, *v_head = p.values + kv_head * head_bytes;
    const auto load = [&](int tile) {
        if (tile < tiles) {
            const uint32_t stage = ring + tile % 2 * 2 * kTileBytes;
            load_tile<kThreads>(stage, k_head, tile * kKeys, keys);
            load_tile<kThreads>(stage + kTileBytes, v_head, tile * kKeys, keys);
        }
        copy_commit();
    };
    load(0);

    uint32_t q[4][4];
    float out[8][4] = {};
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    const float scale = p.scale * kLog2e;
    for (int tile = 0; tile < tiles; ++tile) {
        load(tile + 1);
        copy_wait<1>();
        __syncthreads();
        if (tile == 0)
#pragma unroll
            for (int d = 0; d < 4; ++d)
                ldmatrix_x4(q[d], qs + slot(warp * 16 + lane % 16, d * 2 + lane / 16));
        const uint32_t ks = ring + tile % 2 * 2 * kTileBytes, vs = ks + kTileBytes;

        float scores[8][4] = {};
#pragma unroll
        for (int d = 0; d < 4; ++d)
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                uint32_t b[4];
                ldmatrix_x4(b, ks + slot(n * 8 + lane / 16 * 8 + lane % 8, d * 2 + lane / 8 % 2));
                mma_bf16(scores[n], q[d], b[0], b[1]);
                mma_bf16(scores[n + 1], q[d], b[2], b[3]);
            }

        // Rows g and g + 8: scores[.][0, 1] and [2, 3].
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float most_here = top[i];
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    float& s = scores[n][2 * i + c];
                    const int key = tile * kKeys + n * 8 + 2 * t + c;
                    s = key < length[i] ? s * scale : -INFINITY;
                    most_here = fmaxf(most_here, s);
                }
            most_here = max_over<4>(most_here);
            const float base = most_here == -INFINITY ? 0.0f : most_here;  // a row without keys
            const float correction = exp2_fast(top[i] - base);
            top[i] = most_here;
            float sum_here = 0.0f;
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    float& s = scores[n][2 * i + c];
                    s = exp2_fast(s - base);
                    sum_here += s;
                }
            sum[i] = sum[i] * correction + sum_here;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                out[n][2 * i] *= correction;
                out[n][2 * i + 1] *= correction;
            }
        }

        // What came out as C is A of the next product: columns 2t, 2t + 1 of two n8 tiles are the
        // k of one step.
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const uint32_t a[4] = {pack_bf162(scores[2 * k][0], scores[2 * k][1]),
                                   pack_bf162(scores[2 * k][2], scores[2 * k][3]),
                                   pack_bf162(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                                   pack_bf162(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                uint32_t b[4];
                ldmatrix_x4_trans(b,
                                  vs + slot(k * 16 + lane / 8 % 2 * 8 + lane % 8, n + lane / 16));
                mma_bf16(out[n], a, b[0], b[1]);
                mma_bf16(out[n + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();  // the next load overwrites what was read here
    }
    copy_wait_all();

#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float total = sum_over<4>(sum[i]);
        const float factor = total > 0.0f ? 1.0f / total : 0.0f;
        const int packed = packed0 + warp * 16 + i * 8 + g;
        if (packed >= packed_rows) continue;
        const int head = kv_head * p.group + packed % p.group;
        uint32_t* to = reinterpret_cast<uint32_t*>(p.out.data + packed / p.group * p.out.ld) +
                       head * (kHeadDim / 2);
#pragma unroll
        for (int n = 0; n < 8; ++n)
            to[n * 4 + t] = pack_bf162(out[n][2 * i] * factor, out[n][2 * i + 1] * factor);
    }
}

__global__ void __launch_bounds__(128) attention_bf16_64(Problem p) { attend<4>(p); }
__global__ void __launch_bounds__(32) attention_bf16_16(Problem p) { attend<1>(p); }

template <int WARPS>
cudaError_t launch_attend(void (*kernel)(Problem), const Problem& p, int kv_heads,
                          cudaStream_t stream) {
    const int rows = 16 * WARPS;
    Launch how;
    how.grid = dim3((p.q.rows * p.group + rows - 1) / rows, kv_heads);
    how.block = dim3(32 * WARPS);
    how.shared_bytes = (rows + 4 * kKeys) * kRowBytes + WARPS * sizeof(int);
    how.stream = stream;
    return launch(kernel, how, p);
}

// --- any head_dim, float32 arithmetic ------------------------------------------------------------

constexpr int kExactWarps = 4;

// A warp takes one packed row at a time. Scores of all keys stay in shared memory, so the softmax
// needs no correction and sums in the order of the keys.
template <class Kv>
__global__ void __launch_bounds__(32 * kExactWarps) attention_f32_kernel(Problem p) {
    const int lane = lane_index(), warp = warp_index();
    const int packed = blockIdx.x * kExactWarps + warp, kv_head = blockIdx.y;
    const bool here = packed < p.q.rows * p.group;
    const int row = here ? packed / p.group : 0;
    const int head = kv_head * p.group + (here ? packed % p.group : 0);
    const int length = here ? min(p.lengths[row], p.capacity) : 0;
    float* query = shared_memory<float>() + warp * (p.head_dim + p.capacity);
    float* scores = query + p.head_dim;
    const size_t head_elements = size_t(p.capacity) * p.head_dim;
    const Kv* keys = reinterpret_cast<const Kv*>(p.keys) + kv_head * head_elements;
    const Kv* values = reinterpret_cast<const Kv*>(p.values) + kv_head * head_elements;

    for (int d = lane; d < p.head_dim; d += 32)
        query[d] = here ? get(p.q, row, head * p.head_dim + d) * p.scale : 0.0f;
    __syncwarp();
    float most = -INFINITY;
    for (int key = lane; key < length; key += 32) {
        float dot = 0.0f;
        for (int d = 0; d < p.head_dim; ++d)
            dot = fmaf(query[d], widened(keys[size_t(key) * p.head_dim + d]), dot);
        scores[key] = dot;
        most = fmaxf(most, dot);
    }
    most = max_over<>(most);
    float sum = 0.0f;
    for (int key = lane; key < length; key += 32) {
        const float e = expf(scores[key] - most);
        scores[key] = e;
        sum += e;
    }
    sum = sum_over<>(sum);
    __syncwarp();
    if (!here) return;
    for (int d = lane; d < p.head_dim; d += 32) {
        float total = 0.0f;
        for (int key = 0; key < length; ++key)
            total = fmaf(scores[key], widened(values[size_t(key) * p.head_dim + d]), total);
        put(p.out, row, head * p.head_dim + d, length > 0 ? total / sum : 0.0f);
    }
}

Problem problem_of(Mat q, const DeviceKv& kv, int heads, const int* lengths, Mat out) {
    return {q,
            out,
            lengths,
            static_cast<const char*>(kv.keys),
            static_cast<const char*>(kv.values),
            kv.capacity,
            heads / kv.kv_heads,
            kv.head_dim,
            1.0f / sqrtf(static_cast<float>(kv.head_dim)),
            reinterpret_cast<uintptr_t>(q.data) % 16 == 0 && q.ld % 4 == 0};
}

size_t exact_bytes(int keys, int head_dim) {
    return size_t(kExactWarps) * (size_t(head_dim) + keys) * sizeof(float);
}

}  // namespace

cudaError_t prepare_attention(int keys, int head_dim) {
    const size_t bytes = exact_bytes(keys, head_dim);
    if (bytes <= 48 * 1024) return cudaSuccess;
    int device = 0, most = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status == cudaSuccess && bytes > size_t(most)) status = cudaErrorInvalidValue;
    // All that there is: what one policy allowed must not be less than what another one needs.
    if (status == cudaSuccess)
        status = allow_shared_memory(attention_f32_kernel<__nv_bfloat16>, most);
    return status == cudaSuccess ? allow_shared_memory(attention_f32_kernel<float>, most) : status;
}

cudaError_t attention_bf16(Mat q, const DeviceKv& kv, int heads, const int* lengths, Mat out,
                           int processors, cudaStream_t stream) {
    const Problem p = problem_of(q, kv, heads, lengths, out);
    if (q.storage != Storage::f32 && !p.wide) return cudaErrorInvalidValue;
    // Four warps share a tile of keys; where that leaves processors idle, each goes alone.
    if ((q.rows * p.group + 63) / 64 * kv.kv_heads >= processors)
        return launch_attend<4>(attention_bf16_64, p, kv.kv_heads, stream);
    return launch_attend<1>(attention_bf16_16, p, kv.kv_heads, stream);
}

cudaError_t attention_f32(Mat q, const DeviceKv& kv, int heads, const int* lengths, Mat out,
                          cudaStream_t stream) {
    const Problem p = problem_of(q, kv, heads, lengths, out);
    Launch how;
    how.grid = dim3((q.rows * p.group + kExactWarps - 1) / kExactWarps, kv.kv_heads);
    how.block = dim3(32 * kExactWarps);
    how.shared_bytes = exact_bytes(kv.capacity, kv.head_dim);
    how.stream = stream;
    return kv.bf16 ? launch(attention_f32_kernel<__nv_bfloat16>, how, p)
                   : launch(attention_f32_kernel<float>, how, p);
}

}  // namespace smolvla::cuda
